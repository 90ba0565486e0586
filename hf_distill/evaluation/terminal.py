"""What a terminal shows: tables and prose that fit its width, with no cell wrapped and no number torn apart."""

from __future__ import annotations

import io
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence

from ..markdown import plain, shortened, unbroken

_NARROWEST = 24
"""What is left of a column of words where the table would be wider than the terminal."""

_NUMBER = re.compile(r"[+−-]?[\d∞]|[–\s]*$")


def width() -> int:
    """How many columns there are: the terminal's, or 80 where it goes to a file."""
    return shutil.get_terminal_size((80, 24)).columns


def prose(text: str, columns: int | None = None, *, first: str = "", rest: str = "") -> str:
    """A paragraph, wrapped between words and never inside a number or between it and its unit.

    Args:
        text: On one line.
        columns: How many there are; None: `width`.
        first, rest: What its first line and the others begin with.

    Example:
        >>> print(prose("the student gains +1.1 points (95 % interval +0.6 to +1.6)", 40))
        the student gains +1.1 points
        (95 % interval +0.6 to +1.6)
    """
    bound = unbroken(plain(text))
    wrapped = textwrap.fill(
        bound,
        max(20, width() if columns is None else columns),
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
        break_long_words=False,
    )
    return wrapped.replace("\u00a0", " ")


def aligned(lines: Mapping[str, str | Sequence[str]], columns: int | None = None) -> str:
    """Words with what is said of each in a column beside them, wrapped there between words.

    Args:
        lines: By the word; several of one stand below each other.
        columns: How many there are; None: `width`.

    Example:
        >>> print(aligned({"data": "train.jsonl, validation.jsonl", "teachers": ["org/a", "org/b"]}, 34))
        data        train.jsonl,
                    validation.jsonl
        teachers    org/a
                    org/b
    """
    made = []
    for word, said in lines.items():
        for i, one in enumerate([said] if isinstance(said, str) else said):
            made.append(prose(one, columns, first=f"{word if i == 0 else '':<12}", rest=" " * 12))
    return "\n".join(made)


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    words: int | None = None,
    columns: int | None = None,
) -> str:
    """A table no wider than the terminal: no cell wraps, long names lose their middle, and then columns at the right go.

    Args:
        header, rows: The cells.
        words: How many columns hold words, from the left; the others are set to the right. None: those with a cell that is no
            number.
        columns: How many there are; None: `width`.

    Returns:
        The table, with a line that says which columns are left out.

    Example:
        >>> print(table(["system", "right, %", "speed"], [["student", "71.8", "17× faster"], ["ensemble", "77.2", "–"]]))
        system    right, %       speed
        ───────────────────────────────
        student       71.8  17× faster
        ensemble      77.2           –
    """
    room = width() if columns is None else columns
    shown, kept = _fit(header, rows, words, room)
    if kept == len(header):
        return shown
    left_out = "; ".join(plain(name) for name in header[kept:])
    return shown + "\n\n" + prose(f"No room here for: {left_out}.", room)


def in_parts(header: Sequence[str], rows: Sequence[Sequence[str]], *, columns: int | None = None) -> str:
    """All columns of a table that stands nowhere else: what has no room follows below, beside the first column again.

    Args:
        header, rows: The cells.
        columns: How many there are; None: `width`.

    Example:
        >>> print(in_parts(["system", "accuracy, %", "NLL, nats"], [["student", "71.8", "0.888"]], columns=24))
        system   accuracy, %
        ─────────────────────
        student         71.8
        <BLANKLINE>
        system   NLL, nats
        ───────────────────
        student      0.888
    """
    room = width() if columns is None else columns
    header, rows, parts = list(header), [list(row) for row in rows], []
    while True:
        shown, kept = _fit(header, rows, None, room)
        parts.append(shown)
        if kept == len(header):
            return "\n\n".join(parts)
        header, rows = [header[0], *header[kept:]], [[row[0], *row[kept:]] for row in rows]


def _fit(
    header: Sequence[str], rows: Sequence[Sequence[str]], words: int | None, room: int
) -> tuple[str, int]:
    """As many columns from the left as there is room for, and how many those are."""
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[plain(cell) for cell in row] for row in (header, *rows)]
    widths = [max(cell_len(row[i]) for row in cells) for i in range(len(header))]
    kept = len(header)

    def needed() -> int:
        return sum(widths[:kept]) + 2 * kept

    texts = [
        i == 0 or any(not _NUMBER.match(row[i]) for row in cells[1:]) if words is None else i < words
        for i in range(kept)
    ]
    for i in (i for i in range(kept) if texts[i]):
        over = needed() - room
        if over > 0 and widths[i] > _NARROWEST:
            widths[i] = max(_NARROWEST, widths[i] - over)
    while needed() > room and kept > 2:  # names alone say nothing
        kept -= 1
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for i, name in enumerate(cells[0][:kept]):
        made.add_column(
            Text(shortened(name, widths[i])),
            justify="left" if texts[i] else "right",
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in cells[1:]:
        made.add_row(*(Text(shortened(cell, widths[i])) for i, cell in enumerate(row[:kept])))
    console = Console(
        file=io.StringIO(),
        width=max(room, needed() + 2),
        color_system=None,
        force_terminal=False,
        legacy_windows=False,
    )
    console.print(made)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    return "\n".join(lines).rstrip(), kept


def fitted(text: str, columns: int | None = None) -> str:
    """Markdown as a terminal shows it: its tables fit the width, in parts where they are wider, and its paragraphs and lists are
    wrapped between words.

    Headings and blocks of code stay as they are.

    Args:
        text: With the tables of `markdown_table`.
        columns: How many there are; None: `width`.

    Example:
        >>> print(fitted("Two trials:\\n\\n| trial | nll |\\n|-------|-----|\\n| 0     | 0.5 |", 40))
        Two trials:
        <BLANKLINE>
        trial  nll
        ───────────
        0      0.5
    """
    made: list[str] = []
    rows: list[list[str]] = []
    code = False
    for line in [*text.split("\n"), ""]:
        if line.startswith("|") and not code:
            rows.append([cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
            continue
        if rows:
            header, _, *cells = rows
            made.append(in_parts(header, cells, columns=columns))
            rows = []
        code ^= line.startswith("```")
        if code or line.startswith(("#", " ", "```")) or not line.strip():
            made.append(line)
        elif line.startswith(("- ", "* ")):
            made.append(prose(line[2:], columns, first=line[:2], rest="  "))
        else:
            made.append(prose(line, columns))
    return "\n".join(made[:-1])
