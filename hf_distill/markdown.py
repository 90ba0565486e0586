"""Markdown: tables that read in a terminal too, and texts of others made safe: they show as they are and change nothing around."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

# What Markdown, HTML and the Hub's mathematics would take for markup, inside a line.
_ENTITIES = {ord(sign): f"&#{ord(sign)};" for sign in "\\`*[]|$~"} | {
    ord("&"): "&amp;",
    ord("<"): "&lt;",
    ord(">"): "&gt;",
}

# They turn the direction of what follows, so that a text could show as another one.
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


# What belongs to a number, before and after it, stays with it.
_BOUND = re.compile(
    r"(?<=\d) (?=%|±|×|ms\b|MB\b|points?\b|nats\b|rows?\b|seeds?\b|teachers?\b|parameters?\b)|(?<=[±=<>−+]) (?=[\d∞−+])|(?<=%) (?=interval)|(?<=\bp) (?=[=<])"
    r"|(?<=\d) (?=to [−+]?\d)|(?<=\d to) (?=[−+]?\d)"
)


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


def unbroken(text: str) -> str:
    """A sentence whose lines break neither inside a number nor between it and its unit: spaces there do not break.

    Example:
        >>> unbroken("right on 91.2 % of the rows, +1.1 to +2.0 points").replace("\u00a0", "_")
        'right on 91.2_% of the rows, +1.1_to_+2.0_points'
    """
    return _BOUND.sub("\u00a0", text)


def shortened(name: str, most: int) -> str:
    """A name without control characters, and without its middle where it is longer than ``most`` characters.

    Example:
        >>> shortened("organisation/a-very-long-name-v2", 16)
        'organis…-name-v2'
    """
    name = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    if len(name) <= most:
        return name
    head = (most - 1) // 2
    return f"{name[:head]}…{name[len(name) - (most - 1 - head) :]}"


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


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up, so that it reads in a terminal too.

    Args:
        header: The column names.
        rows: The cells, as text; a vertical bar inside a cell is escaped.

    Example:
        >>> print(markdown_table(["a", "b"], [["1", "22"]]))
        | a | b  |
        |---|----|
        | 1 | 22 |
    """
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])
