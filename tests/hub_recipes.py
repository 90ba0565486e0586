"""The recipes with checkpoints of the Hub, run by the real client against a double of the Hub.

Run by tests/runs/test_hub_recipes.py in a process of its own, since the client reads the Hub's address when it is imported.
Under the recipes' own ids lie tiny checkpoints of the same kinds and with the same label names, and data sets of the same
splits, columns and classes: all but the weights and the rows is as it is published.
"""

from __future__ import annotations

import copy
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import hub_server

if __name__ == "__main__":
    import tempfile

    with hub_server.HubDouble() as double, tempfile.TemporaryDirectory() as home:
        hub_server.RUNNING.append(double)
        os.environ.update(
            HF_ENDPOINT=double.url,
            HF_HOME=home,
            HF_HUB_DISABLE_XET="1",
            HF_HUB_OFFLINE="0",
            HF_HUB_DISABLE_PROGRESS_BARS="1",
            HF_HUB_DISABLE_TELEMETRY="1",
        )
        import pytest

        sys.exit(pytest.main([__file__, "-q", "--no-header", "-p", "no:cacheprovider", *sys.argv[1:]]))

import datasets
import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)
from typer.testing import CliRunner

from hf_distill.cli import app

RECIPES = Path(__file__).parent.parent / "recipes"
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SMALL = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}
NLI = ["entailment", "neutral", "contradiction"]
INTENTS = [f"intent_{i}" for i in range(77)]
WORDS = ["a", "the", "film", "plot", "actor", "scene", "good", "bad", "fine", "dull"]


def named(labels):
    return {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}


def unnamed(count):
    return [f"LABEL_{i}" for i in range(count)]


def files_of(model, tokenizer, folder) -> dict[str, bytes]:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.fixture
def checkpoint(tmp_path, bert_tokenizer, roberta_tokenizer, unigram_tokenizer):
    """Puts a tiny checkpoint of a kind under an id."""
    (hub,) = hub_server.RUNNING

    def put(repo: str, kind: str, labels: list[str] | None = None) -> None:
        torch.manual_seed(len(repo))
        heads = {} if labels is None else named(labels)
        tokenizer = {"roberta": roberta_tokenizer, "deberta": unigram_tokenizer}.get(kind, bert_tokenizer)
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.model_max_length = 128
        common = {"vocab_size": len(tokenizer), "max_position_embeddings": 140, **heads}
        model = {
            "bert": lambda: BertForSequenceClassification(BertConfig(**common, **SIZES)),
            "electra": lambda: ElectraForSequenceClassification(
                ElectraConfig(**common, **SIZES, embedding_size=16)
            ),
            "albert": lambda: AlbertForSequenceClassification(
                AlbertConfig(**common, **SIZES, embedding_size=16)
            ),
            "roberta": lambda: RobertaForSequenceClassification(
                RobertaConfig(**common, **SIZES, pad_token_id=1, type_vocab_size=1)
            ),
            "deberta": lambda: DebertaV2ForSequenceClassification(
                DebertaV2Config(**common, **SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"])
            ),
            "distilbert": lambda: (
                DistilBertForMaskedLM if labels is None else DistilBertForSequenceClassification
            )(DistilBertConfig(**common, **SMALL)),
        }[kind]()
        hub.add(repo, files_of(model, tokenizer, tmp_path / repo.replace("/", "--")))

    return put


def rows_of(columns: list[str], labels: list[str], count: int, seed: int) -> datasets.Dataset:
    generator = torch.Generator().manual_seed(seed)

    def text() -> str:
        return " ".join(WORDS[int(i)] for i in torch.randint(len(WORDS), (6,), generator=generator))

    features = {column: datasets.Value("string") for column in columns}
    features["label"] = datasets.ClassLabel(names=labels)
    made = {column: [text() for _ in range(count)] for column in columns}
    made["label"] = [i % len(labels) for i in range(count)]
    return datasets.Dataset.from_dict(made, features=datasets.Features(features))


@pytest.fixture
def data(tmp_path):
    """Puts a data set of parquet files under an id."""
    (hub,) = hub_server.RUNNING

    def put(
        name: str, splits: dict[str, datasets.Dataset], *, config: str = "data", branch: str = "main"
    ) -> None:
        files = {}
        for split, rows in splits.items():
            path = tmp_path / f"{split}.parquet"
            rows.to_parquet(path)
            where = (
                f"{config}/{split}/0000.parquet"
                if branch != "main"
                else f"{config}/{split}-00000-of-00001.parquet"
            )
            files[where] = path.read_bytes()
        if config != "data" and branch == "main":
            listed = "".join(f"  - split: {split}\n    path: {config}/{split}-*\n" for split in splits)
            files["README.md"] = (
                f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{listed}---\n".encode()
            )
        made = hub.add(f"datasets/{name}", files)
        if branch != "main":
            made.branches[branch] = list(made.branches["main"])
            made.branches["main"] = [hub.commit({}, {"README.md": b"a loading script"}, "script")]

    return put


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(name: str, command: str, *more: str) -> str:
        done = CliRunner().invoke(app, [command, str(RECIPES / f"{name}.yaml"), *more])
        assert done.exit_code == 0, (done.output[-3000:], done.exception)
        return done.output

    return call


def trained(run, name: str, *more: str) -> str:
    """The recipe as it stands, on so few rows that an epoch is two steps."""
    assert "Nothing is wrong with it" in run(name, "validate", "--load")
    few = ["training.num_train_epochs=1", "training.per_device_train_batch_size=8", "training.use_cpu=true"]
    said = run(name, "train", *few, "training.disable_tqdm=true", *more)
    student = AutoModelForSequenceClassification.from_pretrained(f"runs/{name}")
    assert student.config.num_hidden_layers == 1
    assert (Path("runs") / name / "report.html").is_file()
    return said


def test_sst2(checkpoint, data, run):
    checkpoint("textattack/bert-base-uncased-SST-2", "bert", unnamed(2))
    checkpoint("textattack/roberta-base-SST-2", "roberta", unnamed(2))
    checkpoint("howey/electra-base-sst2", "electra", unnamed(2))
    checkpoint("distilbert/distilbert-base-uncased", "distilbert")
    checkpoint(
        "distilbert/distilbert-base-uncased-finetuned-sst-2-english", "distilbert", ["NEGATIVE", "POSITIVE"]
    )
    labels = ["negative", "positive"]
    data(
        "stanfordnlp/sst2",
        {"train": rows_of(["sentence"], labels, 16, 0), "validation": rows_of(["sentence"], labels, 9, 1)},
    )
    said = trained(run, "sst2")
    assert "0 negative  0 'negative'" in said and "baseline" in said


def test_mnli(checkpoint, data, run):
    for repo, kind in (
        ("FacebookAI/roberta-large-mnli", "roberta"),
        ("microsoft/deberta-base-mnli", "deberta"),
    ):
        checkpoint(repo, kind, ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"])
    checkpoint("MoritzLaurer/DeBERTa-v3-base-mnli-fever-anli", "deberta", NLI)
    checkpoint("distilbert/distilbert-base-uncased", "distilbert")
    pair = ["premise", "hypothesis"]
    splits = {"train": (16, 0), "validation_matched": (9, 1), "validation_mismatched": (9, 2)}
    made = {split: rows_of(pair, NLI, *sizes) for split, sizes in splits.items()}
    data("nyu-mll/glue", made, config="mnli")
    said = trained(run, "mnli")
    assert re.search(r"^0 entailment +2 'ENTAILMENT' .* 0 'entailment'", said, re.MULTILINE)


def test_ag_news(checkpoint, data, run):
    for repo, kind in (
        ("bert-base-uncased", "bert"),
        ("roberta-base", "roberta"),
        ("albert-base-v2", "albert"),
    ):
        checkpoint(f"textattack/{repo}-ag-news", kind, unnamed(4))
    checkpoint("distilbert/distilbert-base-uncased", "distilbert")
    labels = ["World", "Sports", "Business", "Sci/Tech"]
    data(
        "fancyzhx/ag_news",
        {"train": rows_of(["text"], labels, 40, 0), "test": rows_of(["text"], labels, 9, 1)},
    )
    trained(run, "ag_news")


def test_banking77(checkpoint, data, run):
    checkpoint("philschmid/BERT-Banking77", "bert", sorted(INTENTS))
    checkpoint("mrm8488/distilroberta-finetuned-banking77", "roberta", INTENTS)
    checkpoint("optimum/distilbert-base-uncased-finetuned-banking77", "distilbert", INTENTS)
    checkpoint("distilbert/distilbert-base-uncased", "distilbert")
    splits = {"train": rows_of(["text"], INTENTS, 154, 0), "test": rows_of(["text"], INTENTS, 77, 1)}
    data("PolyAI/banking77", splits, config="default", branch="refs/convert/parquet")
    trained(run, "banking77")
