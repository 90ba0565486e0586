"""Tables that are generated: what was written is what is read, in any format and any parts; what is damaged is named."""

import csv
import gzip
import io
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from generators import cases
from hypothesis import assume, example, given
from hypothesis import strategies as st

from hf_distill.errors import DataError
from hf_distill.recipe.tables import Columns, read_files

COLUMNS = Columns(("text",), "label")
FORMATS = ("csv", "tsv", "json", "jsonl", "parquet", "csv.gz", "jsonl.gz")

# What readers take for something else, and any other character that is one.
words = st.sampled_from(["007", "1.0", "NA", "nan", "null", "None", "True", "1e5", "-", "#", "0x1", " ", "inf", "é", "\u2028"])  # fmt: skip
characters = st.characters(codec="utf-8", exclude_characters="\0")
texts = st.one_of(words, st.text(characters, min_size=1, max_size=8), st.text('",;\t\n\r\'a', min_size=1, max_size=5))  # fmt: skip
labels = st.one_of(st.none(), words, st.text(characters, min_size=1, max_size=4))
tables = st.lists(st.tuples(texts, labels), min_size=1, max_size=6)


@pytest.fixture(autouse=True, scope="module")
def _kept_here(tmp_path_factory):
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield
    datasets.config.HF_DATASETS_CACHE = before


def written(folder, name, rows):
    """A file that another program might have written; a TSV holds no tabs and no line ends, so it has none of those rows."""
    kind, path = name.split(".")[1], folder / name
    if kind == "parquet":
        table = pyarrow.table({"text": [t for t, _ in rows], "label": pyarrow.array([l for _, l in rows], "string")})  # fmt: skip # noqa: E741
        pyarrow.parquet.write_table(table, path)
        return str(path)
    if kind == "csv":
        out = io.StringIO()
        writer = csv.writer(
            out
        )  # with \r\n, as the standard says: with \n alone Python does not quote a lone \r
        writer.writerows([("text", "label"), *((text, "" if label is None else label) for text, label in rows)])  # fmt: skip
        content = out.getvalue()
    elif kind == "tsv":
        content = "".join(f"{text}\t{'' if label is None else label}\n" for text, label in [("text", "label"), *rows])  # fmt: skip
    else:
        listed = [{"text": text, **({} if label is None else {"label": label})} for text, label in rows]
        content = json.dumps(listed) if kind == "json" else "".join(json.dumps(row) + "\n" for row in listed)
    encoded = content.encode()
    path.write_bytes(gzip.compress(encoded) if name.endswith(".gz") else encoded)
    return str(path)


def read(*names):
    rows = read_files(names, COLUMNS, "train")
    found = rows["label"][:] if "label" in rows.column_names else [None] * len(rows)
    return list(zip(rows["text"][:], found, strict=True))


def fits_tsv(rows):
    """Whether these can stand in a TSV and mean themselves."""
    fields = [field for row in rows for field in row if field is not None]
    return not any(set(field) & set('\t\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"') for field in fields)


@cases(15)
@given(parts=st.lists(st.tuples(st.sampled_from(FORMATS), tables), min_size=1, max_size=3))
@example(
    parts=[("csv", [("a", None), ("007", "True")]), ("parquet", [("1.0", "NA")]), ("jsonl", [("x", None)])]
)
def test_what_was_written_is_what_is_read(tmp_path_factory, parts):
    folder = tmp_path_factory.mktemp("parts")
    assume(all(fits_tsv(rows) for kind, rows in parts if kind == "tsv"))
    names = [written(folder, f"{i}.{kind}", rows) for i, (kind, rows) in enumerate(parts)]
    meant = [row for _, rows in parts for row in rows]
    assert read(*names) == meant


@cases(15)
@given(
    rows=st.lists(st.tuples(st.text("abc 1", min_size=1, max_size=6), st.sampled_from(["x", "y"])), min_size=2, max_size=8),
    kind=st.sampled_from(["csv", "tsv"]), damage=st.sampled_from(["more", "less", "quote"]), data=st.data(),
)  # fmt: skip
def test_a_row_that_does_not_fit_is_named_with_file_and_line(tmp_path_factory, rows, kind, damage, data):
    folder = tmp_path_factory.mktemp("damaged")
    at = data.draw(st.integers(0, len(rows) - 1))
    mark = {"csv": ",", "tsv": "\t"}[kind]
    lines = [f"text{mark}label", *(f"{text}{mark}{label}" for text, label in rows)]
    assume(all(text.strip() for text, _ in rows))
    if damage == "quote" and kind == "csv":
        lines[at + 1] = f'"{lines[at + 1]}'  # opens and never closes
    elif damage == "less":
        lines[at + 1] = rows[at][0]
    else:
        lines[at + 1] += f"{mark}beyond"
    (folder / f"good.{kind}").write_text("\n".join(lines[:1] + [f"fine{mark}x"]) + "\n")
    (folder / f"bad.{kind}").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError) as refused:
        read(str(folder / f"good.{kind}"), str(folder / f"bad.{kind}"))
    said = str(refused.value)
    assert f"bad.{kind}" in said and "good" not in said and f"line {at + 2}" in said, said
    assert "\n" not in said


@cases(15)
@given(rows=tables, kind=st.sampled_from(["csv.gz", "jsonl.gz", "parquet", "json"]), share=st.floats(0, 0.99))
def test_a_file_that_breaks_off_is_refused_alone(tmp_path_factory, rows, kind, share):
    folder = tmp_path_factory.mktemp("cut")
    name = written(folder, f"cut.{kind}", rows)
    with open(name, "rb+") as file:
        file.truncate(int(share * len(file.read())))
    whole = written(folder, "whole.jsonl", [("fine", "x")])
    with pytest.raises(DataError) as refused:
        read(whole, name)
    assert "cut." in str(refused.value) and "whole" not in str(refused.value), refused.value
