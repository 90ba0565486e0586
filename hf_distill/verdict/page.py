"""The verdict as one page: no script, no other file, nothing from the network; for light, dark and paper."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from ..markdown import plain
from .pictures import Picture, pictures
from .report import Section, VerdictReport
from .systems import STUDENT

# Tables longer than this are folded away.
_LONG = 12

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


def page(report: VerdictReport) -> str:
    """The report as HTML; every text of the user's is escaped.

    Args:
        report: The verdict.
    """
    return document(
        title=f"Verdict: {report.evaluation.dataset}, {report.claim.outcome}",
        head=report.head(),
        outcome=report.claim.outcome.split()[0],
        sentences=report.sentences,
        sections=report.sections(),
        pictures=pictures(report),
        notes=report.evaluation.notes,
    )


def document(
    *,
    title: str,
    head: str,
    outcome: str,
    sentences: Sequence[str],
    sections: Sequence[Section],
    pictures: Sequence[Picture],
    notes: Sequence[str],
) -> str:
    """A report as one page; every text is escaped.

    Args:
        title: Of the window.
        head: What was evaluated.
        outcome: ``gain`` and ``loss`` colour the verdict.
        sentences: The verdict in words, the sentence to quote first.
        sections: The tables, the first of which stands before the pictures and is never folded away.
        pictures: The figures.
        notes: What a reader must know.
    """
    parts = [
        f"<h1>{_text(head)}</h1>",
        f'<div class="verdict {outcome}"><p>{_text(sentences[0])}</p></div>',
        _items(sentences[1:]),
        _section(sections[0], fold=False),
        *(_figure(picture) for picture in pictures),
        *(_section(section, fold=len(section.rows) > _LONG) for section in sections[1:]),
    ]
    if notes:
        parts += ["<h2>Notes</h2>", _items(notes)]
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_text(title)}</title>",
            f"<style>{_STYLE}</style></head><body><main>",
            *parts,
            "</main></body></html>",
        ]
    )


def _section(section: Section, *, fold: bool) -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in section.header)
    rows = "\n".join(
        '<tr class="own">' * (row[0] == STUDENT)
        + "<tr>" * (row[0] != STUDENT)
        + "".join(f"<td>{_cell(cell)}</td>" for cell in row)
        + "</tr>"
        for row in section.rows
    )
    table = (
        f'<div class="scroll"><table class="words{section.words}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>"
    )
    if fold and section.header[0] != "text":
        table = f"<details><summary>{len(section.rows)} rows</summary>{table}</details>"
    note = f'<p class="note">{_text(section.note)}</p>' if section.note else ""
    return f"<h2>{_text(section.title)}</h2>\n{table}\n{note}"


def _cell(text: str) -> str:
    """A mean, and smaller what it varies by; any other text as it is."""
    found = re.fullmatch(r"([\d.−∞]+) (± [\d.–]+)", text)
    return _text(text) if found is None else f"{found[1]} <small>{found[2]}</small>"


def _figure(picture: Picture) -> str:
    caption = f"<figcaption>{_text(picture.caption)}</figcaption>"
    return f"<h2>{_text(picture.title)}</h2>\n<figure>{picture.svg()}{caption}</figure>"


def _items(sentences: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(sentence)}</li>' for sentence in sentences)}</ul>" if sentences else ""


def _text(value: str) -> str:
    """On one line, without characters that no page may have, and escaped."""
    return escape(plain(value))
