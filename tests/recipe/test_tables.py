"""Rows of files are what the files say, or are refused with file and line."""

import csv
import gzip
import itertools
import json
import random

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from hf_distill.errors import DataError
from hf_distill.recipe.tables import Columns, read_files

COLUMNS = Columns(("text",), "label")
# What readers like to take for something else.
PIECES = [
    "007",
    "1.0",
    "NA",
    "nan",
    "null",
    "True",
    "1e5",
    "a",
    "great film",
    "é",
    "\u2028",
    "#",
    "'",
    "-",
    "0x1",
    " x ",
]
QUOTED = [*PIECES, '"', ",", "\n", '""', ";"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def put(name, content, encoding="utf-8"):
    content = content if isinstance(content, bytes) else content.encode(encoding)
    with open(name, "wb") as file:
        file.write(gzip.compress(content) if name.endswith(".gz") else content)
    return name


def read(*names, columns=COLUMNS):
    rows = read_files(names, columns, "train")
    labels = rows["label"][:] if "label" in rows.column_names else [None] * len(rows)
    return list(zip(rows["text"][:], labels, strict=True))


def write(name, rows):
    """Rows as usual writers write them; a label of None as these write what is missing."""
    kind = name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        table = {
            "text": [text for text, _ in rows],
            "label": [label for _, label in rows],
            "other": list(range(len(rows))),
        }
        pyarrow.parquet.write_table(pyarrow.table(table, schema=None), name)
        return name
    if kind in ("json", "jsonl"):
        objects = [{"other": 1, "text": t} | ({} if y is None else {"label": y}) for t, y in rows]
        return put(
            name, json.dumps(objects, indent=1) if kind == "json" else "\n".join(map(json.dumps, objects))
        )
    with open("plain", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="," if kind == "csv" else "\t").writerows(
            [("other", "text", "label"), *((i, t, "" if y is None else y) for i, (t, y) in enumerate(rows))]
        )
    with open("plain", "rb") as file:
        return put(name, file.read())


def some_rows(seed, pieces, count=40):
    draw = random.Random(seed)
    return [
        ("".join(draw.choices(pieces, k=draw.randint(1, 4))), draw.choice([None, *PIECES]))
        for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "name", ["r.csv", "r.tsv", "r.json", "r.jsonl", "r.parquet", "r.csv.gz", "r.jsonl.gz"]
)
def test_texts_and_labels_come_back_as_they_were_written(name, seed):
    rows = some_rows(seed, PIECES if ".tsv" in name else QUOTED)
    assert read(write(name, rows)) == rows


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_files_of_several_formats_and_rows_without_labels_in_any_order(order):
    parts = [
        ("a.csv", [("x", None), ("007", None)]),
        ("b.jsonl", [("y", "True"), ("z", "1.0")]),
        ("c.parquet", [("v", "NA")]),
        ("d.tsv", [("w", None)]),
    ]
    chosen = [parts[i] for i in order]
    assert read(*(write(name, rows) for name, rows in chosen)) == [row for _, rows in chosen for row in rows]


def test_unlabelled_rows_before_labelled_ones_beyond_any_chunk():
    rows = [(str(i), None) for i in range(10_001)] + [("great", "positive")]
    for name in ("u.csv", "u.jsonl"):
        read_back = read(write(name, rows))
        assert read_back[0] == ("0", None)
        assert read_back[-1] == ("great", "positive")
        assert len(read_back) == len(rows)


def test_numbers_and_truths_of_json_are_labels_by_what_is_written():
    put(
        "b.jsonl",
        '{"text": "x", "label": true}\n{"text": "x", "label": 1.0}\n{"text": "x", "label": 7}\n{"text": "x", "label": NaN}\n',
    )
    assert [label for _, label in read("b.jsonl")] == ["true", "1.0", "7", None]


def test_only_named_columns_are_kept_and_splits_need_not_have_labels():
    rows = read_files([write("a.jsonl", [("x", None)])], COLUMNS, "test")
    assert rows.column_names == ["text"]
    assert str(rows.split) == "test"


def test_class_labels_of_parquet_stay_so_unless_another_file_has_names():
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["n", "p"])}
    )
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features=features).to_parquet(
        "a.parquet"
    )
    assert read_files(["a.parquet"], COLUMNS, "train").features["label"].names == ["n", "p"]
    assert read("a.parquet", write("b.csv", [("c", "n")])) == [("a", "p"), ("b", None), ("c", "n")]


def test_a_lone_quotation_mark_in_a_tsv_is_a_character():
    lines = ["text\tlabel"] + [f"film {i}\tpos" for i in range(300)]
    lines[10], lines[290] = '"' + lines[10], 'film 289"\tpos'
    put("q.tsv", "\n".join(lines))
    rows = read("q.tsv")
    assert len(rows) == 300
    assert (rows[9][0], rows[289][0]) == ('"film 9', 'film 289"')


def test_a_tsv_that_was_quoted_nevertheless():
    put("all.tsv", '"text"\t"label"\n"fine"\t"pos"\n')
    put("some.tsv", 'text\tlabel\n"said ""no"""\tpos\n"fine"\tpos\n')
    assert read("all.tsv") == [("fine", "pos")]
    assert [text for text, _ in read("some.tsv")] == ['said "no"', '"fine"']


def test_an_edited_file_is_read_again_and_a_copy_is_not(monkeypatch):
    put("a.csv", "text,label\nx,1\n")
    first = read_files(["a.csv"], COLUMNS, "train")
    put("b.csv", "text,label\nx,1\n")
    assert read_files(["b.csv"], COLUMNS, "train")._fingerprint == first._fingerprint
    put("a.csv", "text,label\ny,1\n")
    assert read("a.csv") == [("y", "1")]


HEAD = "text,label\n"


@pytest.mark.parametrize(
    ("name", "content", "where", "what"),
    [
        ("c.csv", HEAD + "great, lovely film,positive\nx,negative\n", "line 2", "found 3 fields, but the header names 2"),
        ("c.csv", HEAD + "fine,positive\nfine\n", "line 3", "found 1 field, but"),
        ("c.csv", HEAD + "a\ra,positive\n", "line 2", "found 1 field, but"),
        ("c.csv", HEAD + '"a\nb",x\nfine,y,z\n', "line 4", "found 3 fields, but"),
        ("c.csv", HEAD + '"fine,x\nfine,y\n', "line 2", "a quotation mark opens or closes in the wrong place"),
        ("c.csv", HEAD + '"fine" film,x\n', "line 2", "a quotation mark opens or closes in the wrong place"),
        ("c.tsv", "text\tlabel\na\tb\nfine\n", "line 3", "found 1 field, but"),
        ("c.tsv", 'text\tlabel\n"a\tb"\tx\n', "line 2", "found 3 fields, but"),
        ("c.csv", "text,text,label\na,b,c\n", "line 1", "the column 'text' stands more than once"),
        ("c.jsonl", '{"text": "a"}\n\n[1, 2]\n', "line 3", "found [1, 2], expected an object"),
        ("c.jsonl", '{"text": "a"}\n{"text": 5}\n', "line 2", "column 'text': found 5, expected text"),
        ("c.jsonl", '{"text": "a"}\n{"text": null}\n', "line 2", "column 'text': found null, expected text"),
        ("c.jsonl", '{"text": "a"}\n{"txt": "b"}\n', "line 2", "it has no 'text' (did you mean 'txt'?)"),
        ("c.jsonl", '{"text": "a", "label": ["x"]}\n', "line 1", "found [\"x\"], expected a label"),
        ("c.jsonl", '{"text": "a"}\n{"text": ', "line 2", "it is no JSON"),
        ("c.jsonl", '{"text": "a", "text": "b"}\n', "line 1", "the key 'text' stands twice"),
        ("c.jsonl", '{"text": "a\\ud800"}\n', "line 1", "half a character"),
        ("c.json", '[{"text": "a"}, 5]', "row 2", "found 5, expected an object"),
        ("c.json", '[{"text": "a"} {"text": "b"}]', "after row 1", "expected a comma"),
        ("c.json", '[{"text": "a"},', "row 2", "it is no JSON"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("compressed", [False, True])
def test_a_row_that_cannot_be_meant_is_named(name, content, where, what, compressed):
    name = put(name + ".gz" * compressed, content)
    with pytest.raises(DataError) as raised:
        read(write("fine.csv", [("x", "y")]), name)
    message = str(raised.value)
    assert f"data.files: {name}, {where}" in message
    assert what in message
    assert "\n" not in message
    assert "fine.csv" not in message


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("e.csv", b"", "is empty: its first line must name the columns"),
        ("e.csv", b"text,label\n", "has no rows"),
        ("e.jsonl", b"\n", "has no rows"),
        ("e.json", b"[]", "has no rows"),
        ("e.parquet", b"no parquet", "cannot be loaded"),
        ("e.csv", "text,label\ngreat café,positive\n".encode("cp1252"), "in WINDOWS-1252 (line 2 has the byte 0xE9): save it as UTF-8"),
        ("e.csv", ("text,label\n" + "отличный фильм,x\n" * 9).encode("cp1251"), "not in UTF-8 (line 2 has the byte 0xEE): save it as UTF-8"),
        ("e.tsv", "text\tlabel\ngreat\tpositive\n".encode("utf-16"), "in UTF-16 (it begins as UTF-16 does): save it as UTF-8"),
        ("e.csv", "text,label\ngreat,positive\n".encode("utf-16-le"), "in UTF-16 (it has bytes of zero)"),
        ("e.jsonl", '{"text": "a"}\n'.encode("utf-32"), "in UTF-32"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_named_alone(name, content, what):
    with open(name, "wb") as file:
        file.write(content)
    with pytest.raises(DataError) as raised:
        read(write("fine.csv", [("x", "y")]), name)
    assert f"data.files: {name} " in str(raised.value)
    assert what in str(raised.value)
    assert "fine.csv" not in str(raised.value)


@pytest.mark.parametrize("name", ["t.csv.gz", "t.jsonl.gz", "t.json.gz"])
def test_a_truncated_gz_is_one_sentence(name):
    draw = random.Random(0)
    write(name, [(str(draw.random()), "x") for _ in range(2000)])
    with open(name, "rb") as file:
        whole = file.read()
    for length in (0, 5, len(whole) // 2, len(whole) - 4):
        with open(name, "wb") as file:
            file.write(whole[:length])
        with pytest.raises(DataError, match=name):
            read(name)


def test_fields_between_semicolons_are_recognised():
    put("s.csv", "text;label\ngreat;positive\n")
    with pytest.raises(DataError, match="its fields seem to be separated by ';'"):
        read("s.csv")


def test_a_byte_order_mark_is_no_part_of_a_column():
    put("b.csv", "text,label\ngreat,positive\n", "utf-8-sig")
    assert read("b.csv") == [("great", "positive")]


def test_a_json_array_is_read_in_pieces(monkeypatch):
    monkeypatch.setattr("hf_distill.recipe.tables._PIECE", 7)
    rows = some_rows(3, QUOTED)
    assert read(write("a.json", rows)) == rows
