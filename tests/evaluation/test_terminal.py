"""What a terminal shows fits its width: no cell wraps, and no line ends inside a number."""

from __future__ import annotations

import re

import pytest

from hf_distill.evaluation.terminal import fitted, prose, table
from hf_distill.markdown import markdown_table

HEADER = [
    "system",
    "accuracy, %",
    "NLL, nats",
    "Brier score",
    "calibration error, %",
    "divergence, nats",
    "T",
]
ROWS = [
    [
        "organisation/a-checkpoint-with-a-very-long-name-of-its-own-v2",
        "71.8 ± 0.4",
        "0.888",
        "0.404",
        "7.1",
        "0.21",
        "–",
    ],
    ["fine-tuned, best step", "59.5 ± 12.3", "1.311", "0.581", "11.6", "0.87", "1.45 ± 0.04"],
]


@pytest.mark.parametrize("columns", [40, 60, 80, 120, 200])
def test_a_table_fits_and_no_cell_wraps(columns):
    shown = table(HEADER, ROWS, words=1, columns=columns)
    body, _, left_out = shown.partition("\n\n")
    lines = body.splitlines()
    assert max(map(len, shown.splitlines())) <= columns
    assert len(lines) == 2 + len(ROWS)  # a line for each row, one for the header, one below it
    kept = [name for name in HEADER if name in lines[0]]
    assert kept == HEADER[: len(kept)] and (len(kept) == len(HEADER)) == (left_out == "")
    said = " ".join(left_out.split())
    assert all(name in said for name in HEADER[len(kept) :])
    # What is shown is whole, but for a name that lost its middle.
    for row, line in zip(ROWS, lines[2:], strict=True):
        assert all(cell in line for cell in row[1 : len(kept)])
    assert re.search(r"organis\w*.*…", lines[2]) or columns == 200


@pytest.mark.parametrize("columns", range(30, 100, 7))
def test_prose_does_not_break_inside_numbers(columns):
    text = (
        "distilled student: accuracy 91.2 ± 0.2, +1.1 over fine-tuning (95 % interval +0.6 to +1.6 points), keeps 98.6 % of "
        "the ensemble, 4.8× faster, 17.6 MB, 0.39 ms a row, p = 0.012, −0.050 (−0.131 to +0.028) on 1,821 rows"
    )
    shown = prose(text, columns, first="- ", rest="  ")
    lines = shown.splitlines()
    assert " ".join(line[2:] for line in lines) == text and all(len(line) <= columns for line in lines)
    for one, following in zip(lines, lines[1:], strict=False):
        before, after = one.split()[-1], following.split()[0]
        assert not (before[-1].isdigit() and re.match(r"(?:%|±|×|ms|MB|to|points|rows)\b", after)), (
            before,
            after,
        )
        assert before not in ("±", "=", "to") and (before, after) != ("%", "interval")


@pytest.mark.parametrize("columns", [30, 40, 60, 80, 200])
def test_markdown_loses_no_column(columns):
    """What is printed stands nowhere else, such as which teacher's labels were matched how."""
    header = ["student", *(f"teacher {i}" for i in range(7))]
    rows = [[f"{c} class {c}", *(f"{i} 'Class {c} of {i}'" for i in range(7))] for c in range(3)]
    shown = fitted(markdown_table(header, rows), columns)
    assert max(map(len, shown.splitlines())) <= max(columns, 32)
    parts = shown.split("\n\n")
    assert all(part.startswith("student") for part in parts) and (len(parts) == 1) == (columns == 200)
    assert [name for part in parts for name in re.findall(r"teacher \d", part)] == header[1:]
    assert all(cell in shown for row in rows for cell in row)


def test_markdown_is_shown_with_tables_that_fit():
    text = f"# Search\n\n{markdown_table(HEADER, ROWS)}\n\n- one point\n\n```\na | b   c\n```"
    shown = fitted(text, 80)
    assert "|--" not in shown and "# Search" in shown and "- one point" in shown and "a | b   c" in shown
    assert max(map(len, shown.splitlines())) <= 80
    cells = table(["a"], [["x | y"]], columns=80)
    assert fitted(markdown_table(["a"], [["x | y"]]), 80) == cells


def test_what_others_wrote_cannot_colour_or_break_the_terminal():
    shown = table(["name"], [["[red]x[/red] \x1b[31m\nnext :smile:"]], columns=80)
    assert "[red]x[/red] [31m next :smile:" in shown and "\x1b" not in shown
