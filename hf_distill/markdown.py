"""Texts that somebody else wrote, made safe for Markdown: they show as they are and change nothing around them."""

from __future__ import annotations

import re
import unicodedata

# What Markdown, HTML and the Hub's mathematics would take for markup, inside a line.
_ENTITIES = {ord(sign): f"&#{ord(sign)};" for sign in "\\`*[]|$~"} | {
    ord("&"): "&amp;",
    ord("<"): "&lt;",
    ord(">"): "&gt;",
}

# They turn the direction of what follows, so that a text could show as another one.
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def plain(text: object) -> str:
    """A text on one line, without control characters, that can be written as UTF-8.

    Example:
        >>> plain("a\\n---\\x00b \\ud800")
        'a --- b ?'
    """
    kept = "".join(
        " " if unicodedata.category(c) in ("Cc", "Zl", "Zp") or c in _DIRECTIONS else c for c in str(text)
    )
    return " ".join(kept.encode("utf-8", "replace").decode().split())


def escaped(text: object) -> str:
    """A text that stays inside its table cell, line and paragraph, whatever characters it has.

    Example:
        >>> escaped("a|b <i>`")
        'a&#124;b &lt;i&gt;&#96;'
        >>> escaped("log_pool _x_ http://a")
        'log_pool &#95;x&#95; http&#58;//a'
    """
    line = plain(text).translate(_ENTITIES)
    for linked, split in (("://", "&#58;//"), ("www.", "www&#46;"), ("@", "&#64;")):  # links by themselves
        line = line.replace(linked, split)
    line = re.sub(r"(?<![^\W_])_|_(?![^\W_])", "&#95;", line)  # those inside words mean nothing
    # At the beginning of a line these would make a heading, a list or a quotation.
    return re.sub(r"^(?=(?:[#+=-]+|\d+[.)])(?:\s|$))(.)", lambda found: f"&#{ord(found[1])};", line)


def code(text: object) -> str:
    """A text as code, which has no markup.

    Example:
        >>> code("pool(`x`)")
        "`pool('x')`"
    """
    inside = plain(text).replace("`", "'")
    return f"`{inside}`" if inside else "–"
