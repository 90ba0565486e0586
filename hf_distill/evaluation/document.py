"""What a report says, once: sections of paragraphs, tables, lists and pictures, as text, as Markdown and as one page.

Whatever somebody else has written, such as a name or the text of a row, shows as it is and changes nothing around it.
The page has no script, needs no other file and nothing from the network; it is for light, dark and paper.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..files import whole
from ..markdown import escaped, markdown_table, plain
from .plots import BACK, BLUE, GREEN, GREY, GRID, ORANGE, PURPLE, STYLE, drawn, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A terminal shows so many rows of a table, and a page folds longer ones away.
_MOST_ROWS = 12

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

_STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --text: #1b1f24; --soft: #57606a; --line: #d0d7de; --card: #f6f8fa;
  --blue: #0072b2; --orange: #c04f00; --green: #007f5b; --purple: #a3457b; --grey: #6e7781; --grid: #e3e7eb; }
@media (prefers-color-scheme: dark) { :root { --back: #0f1216; --text: #e4e8ec; --soft: #9aa4ae; --line: #343b43;
  --card: #181d23; --blue: #5ab4ec; --orange: #f08a4b; --green: #3ecf9e; --purple: #e29cc4;
  --grey: #98a2ac; --grid: #2a3037; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 74rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1rem; font-weight: 600; color: var(--soft); margin: 0 0 .75rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .6rem; }
.verdict { background: var(--card); border-left: .35rem solid var(--grey); border-radius: .35rem; padding: 1.1rem 1.25rem; }
.verdict.gain { border-color: var(--green); } .verdict.loss { border-color: var(--orange); }
.verdict p { font-size: 1.3rem; line-height: 1.4; margin: 0; font-weight: 600; text-wrap: pretty; }
.verdict p::first-letter { text-transform: uppercase; }
ul { padding-left: 1.2rem; } li { margin: .25rem 0; }
.note { color: var(--soft); font-size: .86rem; max-width: 60rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; min-width: 40%; }
th, td { padding: .3rem .5rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
td { white-space: nowrap; }
td small { color: var(--soft); font-size: .85em; font-weight: 400; }
th:first-child, td:first-child { padding-left: .35rem; }
.words1 :is(th, td):nth-child(-n+1), .words2 :is(th, td):nth-child(-n+2), .words3 :is(th, td):nth-child(-n+3), .words4 :is(th, td):nth-child(-n+4) { text-align: left; }
.words4 td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 18rem; }
tr.own td { background: var(--card); font-weight: 600; }
summary { cursor: pointer; color: var(--soft); margin: .3rem 0; }
figure { margin: .5rem 0 0; } figcaption { color: var(--soft); font-size: .86rem; max-width: 60rem; }
svg { display: block; width: 100%; height: auto; } svg text { fill: currentColor; }
@media print { :root { --back: #fff; --text: #000; --soft: #444; --line: #bbb; --card: #f3f3f3; }
  html { font-size: 10px; } body { font-size: 1rem; }
  main { padding: 0; max-width: none; } .scroll { overflow: visible; } figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; } th, td { padding: .2rem .35rem; } details > summary { display: none; }
  details::details-content { content-visibility: visible; block-size: auto; } }
"""


class Section(NamedTuple):
    """One table of a report.

    Attributes:
        title: Its heading.
        header, rows: Its cells, as text.
        note: How to read it.
        words: How many columns hold words, from the left.
        marked: Rows that begin with this stand out.
        in_files: Whether only the files have it, and the page whole, such as texts of rows.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    words: int = 1
    marked: str = ""
    in_files: bool = False


class Picture(NamedTuple):
    """One figure.

    Attributes:
        title: Its heading.
        file: The PNG's name beside the report.
        caption: How to read it.
        draw: Makes the figure.
        arguments: For `draw`.
    """

    title: str
    file: str
    caption: str
    draw: Callable[..., Figure]
    arguments: tuple[Any, ...]

    def svg(self) -> str:
        """For the page, in its colours."""
        return svg(self.draw, self.title, *self.arguments)

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
        sentences: The verdict in words, the sentence to quote first.
        sections: The tables, the first of which stands before the pictures and is never folded away.
        pictures: The figures.
        notes: What a reader must know to trust the figures.
        page: The page's file.
    """

    kind: str
    window: str
    head: str
    outcome: str
    sentences: Sequence[str]
    sections: Sequence[Section]
    pictures: Sequence[Picture]
    notes: Sequence[str]
    page: str

    def text(self) -> str:
        """The tables, shortened where they are long, and the verdict last, where a terminal ends."""
        shown = [_shortened(section) for section in self.sections if not section.in_files]
        return "\n\n".join(
            [
                *(self.head, *rendered(shown, plain), *listed(self.notes, plain, "Notes")),
                *("## Verdict", plain(self.sentences[0]), *listed(self.sentences[1:], plain)),
            ]
        )

    def markdown(self) -> str:
        """All of it, with the pictures behind the first table."""
        figures = [(f"## {own.title}", f"![{own.title}]({own.file})", own.caption) for own in self.pictures]
        return "\n\n".join(
            [
                f"# {self.kind}",
                f"**{escaped(self.sentences[0])}**",
                *listed(self.sentences[1:]),
                f"{escaped(self.head)}. On one page: [{self.page}]({self.page})",
                *rendered(self.sections[:1]),
                *(part for figure in figures for part in figure),
                *rendered(self.sections[1:]),
                *listed(self.notes, heading="Notes"),
            ]
        )

    def html(self) -> str:
        """All of it as one page."""
        first, *others = (_html_section(section, folds=i > 0) for i, section in enumerate(self.sections))
        policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
        return "\n".join(
            [
                "<!doctype html>",
                '<html lang="en"><head><meta charset="utf-8">',
                f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f"<title>{_html(self.window)}</title>",
                f"<style>{_STYLE}</style></head><body><main>",
                f"<h1>{_html(self.head)}</h1>",
                f'<div class="verdict {self.outcome}"><p>{_html(self.sentences[0])}</p></div>',
                _html_list(self.sentences[1:]),
                first,
                *(_html_figure(picture) for picture in self.pictures),
                *others,
                *(["<h2>Notes</h2>", _html_list(self.notes)] if self.notes else []),
                "</main></body></html>",
            ]
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


def svg(draw: Callable[..., Figure], title: str, *arguments: Any) -> str:
    """A figure as an `<svg>` element that refers to nothing outside itself.

    Args:
        draw: Makes the figure.
        title: What a screen reader says of it.
        arguments: For `draw`.

    Example:
        >>> from hf_distill.evaluation.plots import reliability_diagram
        >>> from hf_distill.tasks.row_scores import ReliabilityBin
        >>> text = svg(reliability_diagram, "Quality", {"bert": [ReliabilityBin(0.9, 0.8, 40)]})
        >>> text.startswith("<svg"), "http" in re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
        (True, False)
    """
    settings = {
        "svg.fonttype": "none",  # text stays text: it can be found and read aloud, and looks like the page's
        "svg.hashsalt": title,  # ids of several figures on a page must differ, and repeat from run to run
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
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    text = re.sub(
        r'(<svg[^>]*?) width="[^"]*"| height="[^"]*"(?=[^>]*viewBox)',
        lambda m: m.group(1) or "",
        text,
        count=2,
    )
    style = f"max-width:{float(width.group(1)) * 4 / 3:.0f}px" if width else ""
    return text.replace("<svg", f'<svg role="img" aria-label="{label}" style="{style}"', 1).strip()


def _shortened(section: Section) -> Section:
    more = len(section.rows) - _MOST_ROWS
    return (
        section
        if more <= 0
        else section._replace(rows=section.rows[:_MOST_ROWS], note=f"{more} more rows are in the report.")
    )


def _html_section(section: Section, *, folds: bool) -> str:
    head = "".join(f'<th scope="col">{_html(name)}</th>' for name in section.header)
    rows = "\n".join(
        ('<tr class="own">' if row[0] == section.marked != "" else "<tr>")
        + "".join(f"<td>{_html_cell(cell)}</td>" for cell in row)
        + "</tr>"
        for row in section.rows
    )
    made = (
        f'<div class="scroll"><table class="words{section.words}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>"
    )
    if folds and len(section.rows) > _MOST_ROWS and not section.in_files:
        made = f"<details><summary>{len(section.rows)} rows</summary>{made}</details>"
    note = f'<p class="note">{_html(section.note)}</p>' if section.note else ""
    return f"<h2>{_html(section.title)}</h2>\n{made}\n{note}"


def _html_cell(text: str) -> str:
    """A mean, and smaller what it varies by; any other text as it is."""
    found = re.fullmatch(r"([\d.−∞]+) (± [\d.–]+)", text)
    return _html(text) if found is None else f"{found[1]} <small>{found[2]}</small>"


def _html_figure(picture: Picture) -> str:
    caption = f"<figcaption>{_html(picture.caption)}</figcaption>"
    return f"<h2>{_html(picture.title)}</h2>\n<figure>{picture.svg()}{caption}</figure>"


def _html_list(sentences: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_html(sentence)}</li>' for sentence in sentences)}</ul>" if sentences else ""


def _html(value: str) -> str:
    """On one line, without characters that no page may have, and escaped."""
    return escape(plain(value))
