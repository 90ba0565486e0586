"""From files and checkpoints to a recipe, from the recipe to a run, and from the run to answers."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from several_labels import LABELS, label_checkpoints, score_checkpoints
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
from typer.testing import CliRunner

from conftest import make_bert
from hf_distill.cli import app
from hf_distill.errors import ConfigurationError, DataError
from hf_distill.recipe import Setup, load_recipe
from hf_distill.recipe.tables import Columns
from hf_distill.runs.init import init_recipe, look_at_data
from hf_distill.runs.predict import Predictor, line_rows
from hf_distill.runs.train import train_recipe


def run(*arguments: object, input: str | None = None):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=input)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, checkpoints, rows, held_out):
    """Files as people have them, the recipe that `init` makes of them, and its run."""
    folder = tmp_path_factory.mktemp("walk")
    for name, given in (("train", rows), ("dev", held_out), ("test", held_out)):
        given.cast_column("label", datasets.Value("int64")).to_json(folder / f"{name}.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        teachers = [checkpoints[name] for name in ("bert", "roberta", "deberta")]
        init_recipe(["train.jsonl", "dev.jsonl", "test.jsonl"], teachers, student=checkpoints["student"])
        more = [
            "training.max_steps=2",
            "training.use_cpu=true",
            "training.output_dir=out",
            "evaluation.verdict=false",
        ]
        train_recipe(
            Setup(load_recipe("recipe.yaml", [*more, "training.disable_tqdm=true", "evaluation.seeds=1"]))
        )
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


# ---- init ----


def test_init_finds_splits_columns_and_names(here, checkpoints):
    recipe = load_recipe("recipe.yaml")
    assert recipe.data.files.model_dump() == {
        "train": ("train.jsonl",),
        "validation": ("dev.jsonl",),
        "test": ("test.jsonl",),
    }
    assert (recipe.data.text_columns, recipe.data.label_column) == (("text",), "label")
    assert recipe.data.label_names == ("negative", "positive")
    text = Path("recipe.yaml").read_text()
    assert "CHECK: the data has numbers without names; this is the order of the teacher 'bert'" in text
    assert "# its labels: POSITIVE, NEGATIVE; matched by name" in text
    assert recipe.student.max_length == 32 and recipe.training["metric_for_best_model"] == "nll"
    with pytest.raises(ConfigurationError, match="recipe.yaml is there already: .* --overwrite"):
        init_recipe(["train.jsonl"], [checkpoints["bert"]])


def test_what_init_writes_validates(here, tmp_path, checkpoints):
    out = tmp_path / "other.yaml"
    done = run("init", "train.jsonl", "test.jsonl", "--teacher", checkpoints["bert"], "--output", out)
    assert done.exit_code == 0, done.output
    assert "64 train, 33 test" in done.stdout and "Nothing is wrong with it" in done.stdout
    assert load_recipe(out).student.from_teacher == "bert" and load_recipe(out).student.layers == 1
    assert run("validate", out).exit_code == 0


@pytest.mark.parametrize(
    ("rows", "texts", "label", "names"),
    [
        ([{"premise": "it rains", "hypothesis": "it is wet", "gold": g} for g in ("yes", "no") * 4], ("premise", "hypothesis"), "gold", ("no", "yes")),
        ([{"guid": f"x{i}", "review": f"a film number {i}", "sentiment": s} for i, s in enumerate(["pos", "neg"] * 4)], ("review",), "sentiment", ("neg", "pos")),
        ([{"sentence": f"a longer text {i}", "kind": k} for i, k in enumerate(["a", "b", "b", "a"] * 2)], ("sentence",), "kind", ("a", "b")),
        ([{"title": "t", "text": f"a body {i}", "label": i % 3} for i in range(9)], ("title", "text"), "label", None),
        ([{"text": f"a text {i}"} for i in range(9)], ("text",), None, None),
    ],
    ids=["pair", "own names", "nothing but few values", "numbers", "no labels"],
)  # fmt: skip
def test_columns_are_found(tmp_path, rows, texts, label, names):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = look_at_data([str(tmp_path / "rows.jsonl")])
    assert (found.texts, found.label, found.names) == (texts, label, names)


def test_init_takes_names_from_beside_the_files_and_of_classes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "train.jsonl").write_text(
        '{"text": "x", "label": 0}\n' * 4 + '{"text": "y", "label": 1}\n' * 4
    )
    (tmp_path / "a" / "meta.json").write_text('{"labels": ["cold", "warm"]}')
    assert look_at_data([str(tmp_path / "a")]).names == ("cold", "warm")
    features = datasets.Features(
        {"text": datasets.Value("string"), "topic": datasets.ClassLabel(names=["x", "y"])}
    )
    made = datasets.Dataset.from_dict({"text": ["a b", "c d"], "topic": [0, 1]}, features=features)
    made.to_parquet(tmp_path / "train.parquet")
    found = look_at_data([str(tmp_path / "train.parquet")])
    assert (found.label, found.names) == ("topic", ("x", "y"))


def test_init_says_what_cannot_be(here, tmp_path, checkpoints, bert_tokenizer):
    out = tmp_path / "r.yaml"
    with pytest.raises(ConfigurationError, match="--teacher FOLDER_OR_ID"):
        init_recipe(["train.jsonl"], [], output=out)
    with pytest.raises(DataError, match="there is no folder .*did you mean 'bert'"):
        init_recipe(["train.jsonl"], [str(Path(checkpoints["bert"]).with_name("brt"))], output=out)
    make_bert(bert_tokenizer, ["cold", "warm"]).save_pretrained(tmp_path / "other")
    with pytest.raises(DataError, match="looks like a checkpoint of another task"):
        init_recipe(["train.jsonl"], [checkpoints["bert"], str(tmp_path / "other")], output=out)
    assert not out.exists()
    make_bert(bert_tokenizer, ["LABEL_0", "LABEL_1"]).save_pretrained(tmp_path / "unnamed")
    init_recipe(["train.jsonl"], [checkpoints["bert"], str(tmp_path / "unnamed")], output=out)
    entry = load_recipe(out).teachers.models[1]
    assert (
        entry.labels == {"LABEL_0": "negative", "LABEL_1": "positive"}
        and "CHECK: it does not name" in out.read_text()
    )


def test_init_writes_the_task_that_labels_and_teachers_are_of(
    tmp_path, bert_tokenizer, roberta_tokenizer, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    several = [{"text": f"a text number {i}", "labels": list(LABELS[: i % 4])} for i in range(12)]
    scores = [{"sentence1": f"a text {i}", "sentence2": "b", "score": 0.3 * i} for i in range(16)]
    stars = [{"sentence1": f"a text {i}", "sentence2": "b", "score": i % 6} for i in range(16)]
    labels = label_checkpoints(tmp_path / "labels", bert_tokenizer, roberta_tokenizer)
    numbers = score_checkpoints(tmp_path / "scores", bert_tokenizer, roberta_tokenizer)
    for name, rows, teachers, task, metric in (
        ("several", several, labels, "multi-label-classification", "label_nll"),
        ("scores", scores, numbers, "regression", "mse"),
        ("stars", stars, numbers, "regression", "mse"),
    ):
        for split in ("train", "dev"):
            Path(f"{name}-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = [f"{name}-train.jsonl", f"{name}-dev.jsonl"]
        done = run("init", *files, "--teacher", next(iter(teachers.values())), "--output", f"{name}.yaml")
        assert done.exit_code == 0, done.output
        recipe = load_recipe(f"{name}.yaml")
        assert recipe.task == task and recipe.training["metric_for_best_model"] == metric
        assert recipe.data.label_column == list(rows[0])[-1]
        assert f"{len(rows)} train, {len(rows)} validation" in done.stdout


# ---- predict ----


def test_predict_answers_as_a_pipeline_would(here):
    texts = ["a fine film", "the dull plot was awful"]
    done = run("predict", "out", "--text", texts[0], "--text", texts[1])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["text"] for line in lines] == texts
    own = pipeline("text-classification", "out", device="cpu", top_k=None)(texts)
    for line, scores in zip(lines, own, strict=True):
        assert line["label"] == scores[0]["label"]
        assert line["probabilities"] == pytest.approx({s["label"]: s["score"] for s in scores}, abs=1e-6)
        assert line["score"] == max(line["probabilities"].values())


def test_predict_reads_files_and_lines_as_they_come(here):
    done = run("predict", "out", "--file", "dev.jsonl")
    assert done.exit_code == 0 and len(done.stdout.splitlines()) == 33
    Path("some.csv").write_text('text,more\n"a fine, moving film",x\nthe dull plot,y\n')
    from_csv = run("predict", "out", "--file", "some.csv").stdout
    lines = 'a fine, moving film\n{"text": "the dull plot"}\n'
    assert (
        run("predict", "out", "--file", "-", input=lines).stdout.splitlines()[0] == from_csv.splitlines()[0]
    )
    asked = []

    def endless():
        while True:
            asked.append(1)
            yield ("a fine film",)

    answers = Predictor("out")(endless(), batch_size=4)
    assert next(answers).label in ("negative", "positive") and len(asked) == 4


def test_predict_asks_the_teachers_too(here, checkpoints):
    done = run("predict", "out", "--text", "a fine film", "--with-teachers")
    assert done.exit_code == 0, done.output
    (line,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert set(line["teachers"]) == {"ensemble", "bert", "roberta", "deberta"}
    inputs = AutoTokenizer.from_pretrained(checkpoints["roberta"])("a fine film", return_tensors="pt")
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints["roberta"])
    with torch.no_grad():
        probabilities = model(**inputs).logits.softmax(-1)[0].numpy()
    assert line["teachers"]["roberta"]["score"] == pytest.approx(float(np.max(probabilities)), abs=1e-5)
    assert line["teachers"]["roberta"]["label"] == ["positive", "negative"][int(np.argmax(probabilities))]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("out",), 2, "Say what is to be predicted: --text"),
        (("out", "--text", "a", "--onnx", "--int8"), 2, "ask one"),
        (("nothing", "--text", "a"), 3, "There is no folder"),
        (("out", "--text", "a", "--int8"), 3, "There is no exported student in"),
        (("out", "--file", "none.csv"), 3, "none.csv is not there"),
        (("out", "--file", "recipe.yaml"), 3, "the format is known by the suffix"),
        (("out", "--text", '{"txt": "a"}'), 3, "Line 1 has no text 'text', only 'txt'"),
        (("out", "--text", '{"text'), 3, "Line 1 begins as an object of JSON and is none"),
    ],
)  # fmt: skip
def test_predict_says_what_cannot_be(here, arguments, code, said):
    done = run("predict", *arguments)
    assert done.exit_code == code, done.output
    assert said in done.stderr


def test_a_run_that_was_moved_has_its_own_fusion(here, tmp_path, monkeypatch):
    """And not the one of what lies now where it was trained."""
    shutil.copytree("out", tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    done = run("predict", "moved", "--text", "a fine film", "--with-teachers")
    assert done.exit_code == 0, done.output
    assert "ensemble" in json.loads(done.stdout)["teachers"]


@pytest.mark.parametrize(
    ("section", "more"),
    [("task: strange:Own", ()), ("fusion: strange:Own", ("--with-teachers",))],
    ids=["task", "fusion"],
)
def test_predict_imports_nothing_that_a_run_names(here, tmp_path, monkeypatch, section, more):
    """A run may be somebody else's: what its recipe names is refused before it is imported."""
    shutil.copytree("out", tmp_path / "out")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "strange.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w')\nOwn = None\n")
    recipe = tmp_path / "out" / "recipe.yaml"
    key = section.partition(":")[0]
    recipe.write_text(re.sub(rf"^{key}:.*$", section, recipe.read_text(), flags=re.MULTILINE))
    done = run("predict", tmp_path / "out", "--text", "a fine film", *more)
    assert not (tmp_path / "RAN").exists() and "strange" not in sys.modules
    assert done.exit_code == 4 and "--trust strange:Own" in done.stderr, done.output


def test_a_pair_needs_both_its_texts():
    rows = line_rows(["one text"], Columns(("premise", "hypothesis"), "label"))
    assert list(rows) == [("one text",)]
    assert list(
        line_rows(['{"premise": "a", "hypothesis": "b"}'], Columns(("premise", "hypothesis"), "label"))
    ) == [("a", "b")]


@pytest.mark.slow
def test_exports_answer_as_the_student(here):
    for format in ("onnx", "int8"):
        assert run("export", "out", "--format", format).exit_code == 0
        line = json.loads(run("predict", "out", "--text", "a fine film", f"--{format}").stdout)
        own = json.loads(run("predict", "out", "--text", "a fine film").stdout)
        assert line["probabilities"] == pytest.approx(
            own["probabilities"], abs=1e-5 if format == "onnx" else 0.1
        )


# ---- The data of the local recipes ----


def test_the_script_makes_the_data_that_the_recipes_read(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "recipes"))
    import make_data

    lines = (
        "".join(f"{'NUM' if i % 3 else 'LOC'}:x What is number {i} ?\n" for i in range(60))
        + "LOC:x Twice ?\n" * 2
    )
    raw = {"train": lines, "test": "HUM:ind Who ?\n"}
    files = {}
    for split, text in raw.items():
        (tmp_path / "raw" / split).parent.mkdir(exist_ok=True)
        (tmp_path / "raw" / split).write_text(text)
        import hashlib

        files[split] = (split, hashlib.sha256(text.encode()).hexdigest())
    source = make_data.SOURCES["trec6"]._replace(files=files, cut={"validation": 10})
    monkeypatch.setitem(make_data.SOURCES, "trec6", source)
    assert make_data.make("trec6", tmp_path, tmp_path / "raw") == {"train": 52, "test": 1, "validation": 10}
    rows = {
        split: datasets.load_dataset("json", data_files=str(tmp_path / "trec6" / f"{split}.jsonl.gz"))[
            "train"
        ]
        for split in ("train", "validation", "test")
    }
    assert rows["test"][0] == {"text": "Who ?", "label": 3}
    assert not set(rows["train"]["text"][:]) & set(rows["validation"]["text"][:])
    assert sorted(rows["validation"]["label"][:]) == [4] * 3 + [5] * 7 or len(rows["validation"]) == 10
    meta = json.loads((tmp_path / "trec6" / "meta.json").read_text())
    assert meta["labels"] == ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"] and meta["input_columns"] == [
        "text"
    ]
    monkeypatch.setitem(
        make_data.SOURCES, "trec6", source._replace(files={**files, "test": ("test", "0" * 64)})
    )
    with pytest.raises(SystemExit, match="is another file than was published"):
        make_data.make("trec6", tmp_path, tmp_path / "raw")


@pytest.mark.parametrize("name", ["sst2", "trec6", "ag_news_7600", "banking77", "mrpc"])
def test_each_published_format_is_read(name, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "recipes"))
    import make_data

    text, row = {
        "sst2": ("1 a fine film\n", {"text": "a fine film", "label": "positive"}),
        "trec6": ("NUM:dist How far ?\n", {"text": "How far ?", "label": "NUM"}),
        "ag_news_7600": (
            '"4","A ""title""","Body, text"\n',
            {"title": 'A "title"', "text": "Body, text", "label": "Sci/Tech"},
        ),
        "banking77": (
            "text,category\r\nWhere is my card?,card_arrival\r\n",
            {"text": "Where is my card?", "label": "card_arrival"},
        ),
        "mrpc": (
            'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tHe said "a\tHe said "b\n',
            {"sentence1": 'He said "a', "sentence2": 'He said "b', "label": "equivalent"},
        ),
    }[name]
    assert list(make_data.SOURCES[name].rows(text)) == [row]
