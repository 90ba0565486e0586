"""What a report says, once: sections of paragraphs, tables, lists and pictures, for a terminal, as Markdown and as one page.

Whatever somebody else has written, such as a name or the text of a row, shows as it is and changes nothing around it.
The page has no script, needs no other file and nothing from the network; it is for light, dark and paper.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..files import whole
from ..markdown import code, escaped, markdown_table, plain, unbroken
from .plots import BACK, BLUE, GREEN, GREY, GRID, ORANGE, PURPLE, STYLE, drawn, png
from .terminal import prose, table, width

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure

# On a phone a table of more columns is wider than the screen.
_MANY_COLUMNS = 3

# A page sets these; black is the colour of its text.
_COLOURS = {
    "#000000": "currentColor",
    BACK: "var(--back)",
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    GREEN: "var(--green)",
    PURPLE: "var(--purple)",
    GREY: "var(--grey)",
    GRID: "var(--grid)",
}


class Section(NamedTuple):
    """One table of a report.

    Attributes:
        title: Its heading.
        header, rows: Its cells, as text.
        note: How to read it.
        words: How many columns hold words, from the left.
        marked: Rows that begin with this stand out.
        in_files: Whether it has texts of rows, which the files alone show.
        meaning: A word on what it is for, where a page folds it away.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    words: int = 1
    marked: str = ""
    in_files: bool = False
    meaning: str = ""

    @property
    def shape(self) -> str:
        """What a page's style calls it."""
        return (
            "table"
            + " many" * (len(self.header) > _MANY_COLUMNS)
            + " texts" * (self.words > 3 or self.in_files)
        )


class Picture(NamedTuple):
    """One figure.

    Attributes:
        title: Its heading.
        file: The PNG's name beside the report.
        caption: How to read it.
        draw: Makes the figure; with ``narrow=True`` for a phone.
        arguments: For `draw`.
        alt: What it shows, for those who do not see it.
        table: Its numbers.
    """

    title: str
    file: str
    caption: str
    draw: Callable[..., Figure]
    arguments: tuple[Any, ...]
    alt: str
    table: Section

    def svg(self, *, narrow: bool = False) -> str:
        """For the page, in its colours.

        Args:
            narrow: Whether it is for a phone.
        """
        draw = functools.partial(self.draw, narrow=narrow)
        return svg(draw, self.alt, *self.arguments, salt=f"{self.file} {narrow}")

    def png(self) -> bytes:
        """On white."""
        return png(self.draw, *self.arguments, style=STYLE)


class Document(NamedTuple):
    """A report.

    Attributes:
        kind: What it is, the heading of its Markdown.
        window: The page's title.
        head: What was evaluated.
        outcome: Colours the verdict on the page: ``gain``, ``loss`` or another word.
        advice: What to do, in one sentence for whoever was not there.
        sentences: The verdict in words, the sentence to quote first.
        about: What was run: terms and texts.
        sections: The tables: the first has few columns and stands where the advice does, the others are folded away on a page.
        pictures: The figures.
        notes: What a reader must know to trust the figures.
        page: The page's file.
    """

    kind: str
    window: str
    head: str
    outcome: str
    advice: str
    sentences: Sequence[str]
    about: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    pictures: Sequence[Picture]
    notes: Sequence[str]
    page: str

    def text(self, columns: int | None = None) -> str:
        """What a terminal shows: the advice, the first table, the sentences and the notes; the files have the rest.

        Args:
            columns: How wide it is; None: the terminal's width, 80 where there is none.
        """
        room = width() if columns is None else columns
        first, more = self.sections[0], len(self.sections) - 1 + len(self.pictures)
        rest = [f"{self.page} has {more} more tables and figures."] if more else []
        return "\n\n".join(
            [
                prose(f"{self.kind}: {self.advice}", room),
                prose(self.head, room),
                table(first.header, first.rows, words=first.words, columns=room),
                *(prose(sentence, room) for sentence in self.sentences[:1] if sentence != self.advice),
                *(
                    "\n".join(_bullet(one, room) for one in said)
                    for said in (self.sentences[1:], self.notes)
                    if said
                ),
                *(prose(sentence, room) for sentence in rest),
            ]
        )

    def markdown(self) -> str:
        """All of it, with the pictures behind the first table."""
        figures = [
            (f"## {own.title}", f"![{escaped(own.alt)}]({own.file})", own.caption) for own in self.pictures
        ]
        about = [(term, code(text) if term == "Command" else escaped(text)) for term, text in self.about]
        quoted = [sentence for sentence in self.sentences[:1] if sentence != self.advice]
        return "\n\n".join(
            [
                f"# {self.kind}",
                f"**{escaped(self.advice)}**",
                *map(escaped, quoted),
                f"{escaped(self.head)}. On one page: [{self.page}]({self.page})",
                *(["\n".join(f"- {escaped(term)}: {text}" for term, text in about)] if about else []),
                *rendered(self.sections[:1]),
                *(part for figure in figures for part in figure),
                *listed(self.sentences[1:], heading="How sure this is"),
                *rendered(self.sections[1:]),
                *listed(self.notes, heading="Notes"),
            ]
        )

    def html(self) -> str:
        """All of it as one page."""
        figures = [
            {
                "title": own.title,
                "caption": own.caption,
                "wide": own.svg(),
                "narrow": own.svg(narrow=True),
                "table": own.table,
            }
            for own in self.pictures
        ]
        said = [sentence for sentence in self.sentences if sentence != self.advice]
        return (
            _environment()
            .get_template("page.html.jinja")
            .render(
                {
                    **self._asdict(),
                    "css": Path(__file__).with_name("page.css").read_text(encoding="utf-8"),
                    "quoted": said[0] if self.sentences[0] != self.advice else "",
                    "remarks": said[1:] if self.sentences[0] != self.advice else said,
                    "figures": figures,
                }
            )
        )

    def files(self, json_file: str, markdown_file: str, content: Mapping[str, Any]) -> dict[str, bytes]:
        """The report's files by name: for programs, for people, the page and the pictures.

        Args:
            json_file, markdown_file: What the first two are called.
            content: For programs.
        """
        made = json.dumps(content, indent=1, allow_nan=False)
        texts = {json_file: made, markdown_file: self.markdown(), self.page: self.html()}
        return {
            **{picture.file: picture.png() for picture in self.pictures},
            **{name: f"{text}\n".encode() for name, text in texts.items()},
        }


def rendered(sections: Iterable[Section], shown: Callable[[str], str] = escaped) -> list[str]:
    """Sections as paragraphs of Markdown.

    Args:
        sections: One without a header has no table, and one without a title goes on with what was before.
        shown: How a text is written: `escaped` or `plain`; `str` for texts of our own, or for what is Markdown already.

    Example:
        >>> print("\\n".join(rendered([Section("By <class>", ["a"], [["1"]], "All of them.")])))
        ## By &lt;class&gt;
        | a |
        |---|
        | 1 |
        All of them.
    """
    parts = []
    for title, header, rows, note, *_ in sections:
        parts.append(f"## {shown(title)}" if title else "")
        if header:
            head, *cells = ([shown(cell) for cell in row] for row in (header, *rows))
            parts.append(markdown_table(head, cells))
        parts.append(shown(note))
    return [part for part in parts if part]


def listed(sentences: Iterable[str], shown: Callable[[str], str] = escaped, heading: str = "") -> list[str]:
    """A list with its heading, or nothing where there are no sentences.

    Example:
        >>> listed(["one", "two"], plain, "Notes")
        ['## Notes', '- one\\n- two']
    """
    lines = "\n".join(f"- {shown(sentence)}" for sentence in sentences)
    return [*([f"## {heading}"] if heading else []), lines] if lines else []


def write_files(
    folder: str | os.PathLike[str], files: Mapping[str, bytes], pictures: Sequence[str] = ()
) -> None:
    """Write a report's files, each whole or not at all, and remove the pictures that it has no longer.

    Args:
        folder: Made if missing.
        files: By name.
        pictures: Every name that a picture of such a report may have.
    """
    for name, content in files.items():
        with whole(Path(folder, name), "wb") as file:
            file.write(content)
    for name in set(pictures) - set(files):
        Path(folder, name).unlink(missing_ok=True)


def svg(draw: Callable[..., Figure], alt: str, *arguments: Any, salt: str = "") -> str:
    """A figure as an `<svg>` element that refers to nothing outside itself.

    Args:
        draw: Makes the figure.
        alt: What a screen reader says of it.
        arguments: For `draw`.
        salt: Of the ids in it, which must differ between the figures of a page; empty: `alt`.

    Example:
        >>> from hf_distill.evaluation.plots import reliability_diagram
        >>> from hf_distill.tasks.row_scores import ReliabilityBin
        >>> text = svg(reliability_diagram, "Quality", {"bert": [ReliabilityBin(0.9, 0.8, 40)]})
        >>> text.startswith("<svg"), "http" in re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
        (True, False)
    """
    settings = {
        "svg.fonttype": "none",  # text stays text: it can be found and read aloud, and looks like the page's
        "svg.hashsalt": salt
        or alt,  # ids of several figures on a page must differ, and repeat from run to run
        "font.family": "sans-serif",
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        **STYLE,
    }
    options = {"format": "svg", "transparent": True, "metadata": {"Date": None}}
    text = drawn(draw, arguments, settings, **options).decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for colour, variable in _COLOURS.items():
        text = text.replace(colour, variable)
    text = re.sub(r"(font: [^;\"]*?)'[^;\"]*", r"\1sans-serif", text)
    # It is as wide as there is room, and no wider than it was drawn.
    width = re.search(r'width="([\d.]+)pt"', text)
    label = plain(alt).replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    text = re.sub(
        r'(<svg[^>]*?) width="[^"]*"| height="[^"]*"(?=[^>]*viewBox)',
        lambda m: m.group(1) or "",
        text,
        count=2,
    )
    style = f"max-width:{float(width.group(1)) * 4 / 3:.0f}px" if width else ""
    return text.replace("<svg", f'<svg role="img" aria-label="{label}" style="{style}"', 1).strip()


def _bullet(sentence: str, columns: int) -> str:
    return prose(sentence, columns, first="- ", rest="  ")


@functools.cache
def _environment() -> Environment:
    """The templates beside this file, which write every text on one line, without characters that no page may have."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=FileSystemLoader(Path(__file__).parent),
        # What is marked as safe is ours.
        finalize=lambda value: (
            unbroken(plain(value)) if isinstance(value, str) and not hasattr(value, "__html__") else value
        ),
    )
    environment.filters["spread"] = _with_small_spread
    return environment


def _with_small_spread(text: str) -> tuple[str, str]:
    """A mean and what it varies by; any other text and nothing."""
    found = re.fullmatch(r"([\d.−∞]+) (± [\d.–]+)", text)
    return (text, "") if found is None else (found[1], found[2])
