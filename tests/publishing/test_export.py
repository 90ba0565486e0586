"""Exported students: they answer as the student does, on any rows, and the report says what is true."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, ModernBertConfig, ModernBertForSequenceClassification
from typer.testing import CliRunner

import hf_distill.publishing.export as export
from conftest import make_student
from hf_distill import TASKS
from hf_distill.cli import app
from hf_distill.errors import ConfigurationError, CorruptStateError, DataError, UnsafeFileError
from hf_distill.publishing.export import ExportReport, OnnxStudent, Served, export_student
from hf_distill.recipe import Recipe
from hf_distill.recipe.setup import write_recipe
from hf_distill.rows.preparing import example_id
from hf_distill.runs.export import export_run

WHY = "the extra [onnx] is not installed"


@pytest.fixture(autouse=True)
def _little_time(monkeypatch):
    monkeypatch.setattr(export, "_SECONDS", 0.02)


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    """Where the first export of this module leaves its graph."""
    return tmp_path_factory.mktemp("graph") / "bert.onnx"


@pytest.fixture
def needs_onnx():
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason=WHY)


@pytest.fixture
def export_once(needs_onnx, graph, monkeypatch):
    """The exporter takes seconds: the BERT of these tests is traced once."""

    def write(model, example, path, **options):
        if not graph.is_file():
            export_once(model, example, graph, **options)
        return Path(shutil.copy(graph, path))

    export_once = export.write_onnx
    monkeypatch.setattr(export, "write_onnx", write)


def logits_of(folder: str, rows, max_length: int) -> np.ndarray:
    """One row at a time through PyTorch: nothing is padded and nothing shared with the code under test."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    with torch.no_grad():
        for text in rows["text"]:
            inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=max_length)
            found.append(model(**inputs).logits.numpy())
    return np.concatenate(found)


def test_a_float_export_answers_as_the_student(export_once, checkpoints, held_out, tmp_path):
    report = export_student(
        checkpoints["bert"], rows=held_out, max_length=12, output=tmp_path / "out", metrics=["accuracy"]
    )
    out = tmp_path / "out"
    assert {"model.onnx", "config.json", "tokenizer.json", "export.json", "export.md"} <= {
        file.name for file in out.iterdir()
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # nothing unfinished
    reference = logits_of(checkpoints["bert"], held_out, 12)
    student = OnnxStudent(out)
    assert student.label_names == ("negative", "positive")
    for size in (1, 7, 64):
        assert np.abs(student(held_out["text"][:], batch_size=size) - reference).max() < 1e-5
    assert student([]).shape == (0, 2)
    longer = " ".join(held_out["text"][:4])
    assert np.abs(student([longer]) - logits_of(checkpoints["bert"], {"text": [longer]}, 12)).max() < 1e-5

    assert (report.rows, report.agreement, report.max_length) == (33, 1.0, 12)
    assert report.max_difference < 1e-5
    accuracy = (reference.argmax(-1) == np.array(held_out["label"][:])).mean()
    assert {name: system.metrics for name, system in report.systems.items()} == {
        "student": {"accuracy": pytest.approx(accuracy)},
        "onnx": {"accuracy": pytest.approx(accuracy)},
    }
    assert report.systems["onnx"].bytes == (out / "model.onnx").stat().st_size
    np.testing.assert_allclose(report.answers.logits["student"], reference, atol=1e-5)
    np.testing.assert_allclose(report.answers.logits["onnx"], reference, atol=1e-5)
    assert report.answers.labels.tolist() == held_out["label"][:]
    assert report.answers.example_ids.tolist() == [example_id([text]) for text in held_out["text"][:]]
    assert all(0 < s.p50_ms <= s.p95_ms and s.rows_per_second > 0 for s in report.systems.values())
    assert json.loads((out / "export.json").read_text()) == json.loads(json.dumps(report.to_dict()))
    text = (out / "export.md").read_text()
    assert "100.00% of 33 rows" in text and "over 33 of these rows" in text


def test_a_stream_of_rows_is_as_good(export_once, checkpoints, held_out, tmp_path):
    rows = held_out.to_iterable_dataset()
    report = export_student(checkpoints["bert"], rows=rows, max_length=12, output=tmp_path / "out")
    assert report.rows == 33 and "over 33 of these rows" in report.measured


def test_int8_is_smaller_and_nearly_the_same_and_needs_no_rows(export_once, checkpoints, tmp_path):
    report = export_student(checkpoints["bert"], format="int8", output=tmp_path / "out")
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert "model.int8.onnx" in files and "model.onnx" not in files
    assert (report.dataset, report.rows, report.labels) == ("random tokens", 64, ("negative", "positive"))
    assert report.systems["student"].metrics == {}
    assert 1e-5 < report.max_difference < 0.5  # 7 bits, logits of a few units
    assert report.agreement > 0.9
    texts = ["a fine film", "the plot was awful and the actor was quite dull"]
    reference = logits_of(checkpoints["bert"], {"text": texts}, 64)
    logits = OnnxStudent(tmp_path / "out")(texts, batch_size=1)
    assert 0 < np.abs(logits - reference).max() < 0.5


def test_a_pair_of_texts(needs_onnx, checkpoints, tmp_path, monkeypatch):
    """Without an export: what reaches the session are the pair's own tokens."""
    content = {"file": "model.onnx", "inputs": ["input_ids"], "labels": ["a", "b"], "max_length": 8}
    AutoTokenizer.from_pretrained(checkpoints["bert"]).save_pretrained(tmp_path)
    (tmp_path / "export.json").write_text(json.dumps(content))
    seen = []
    monkeypatch.setattr(export, "open_session", lambda file, threads: file)
    monkeypatch.setattr(
        export, "run_session", lambda *given: seen.append(given) or np.zeros((len(given[1]["input_ids"]), 2))
    )
    assert OnnxStudent(tmp_path)(["film", "plot"], ["good", "bad"]).shape == (2, 2)
    ((file, batch, inputs),) = seen
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["bert"])
    assert batch["input_ids"].tolist() == tokenizer(["film", "plot"], ["good", "bad"])["input_ids"]
    assert (file, inputs) == (tmp_path / "model.onnx", ("input_ids",))


@pytest.mark.parametrize("wrong", [0.002, float("nan")])
def test_an_export_that_answers_otherwise_is_refused_and_leaves_nothing(
    wrong, checkpoints, tmp_path, monkeypatch
):
    def logits(file, batches, inputs):
        model = export.load_with_head(
            checkpoints["bert"], TASKS["text-classification"], what="x", require_head=True
        )
        return np.concatenate([export._forward(model.eval(), batch, inputs) for batch in batches]) + wrong

    monkeypatch.setattr(export, "refuse_missing", lambda *_: None)
    monkeypatch.setattr(export, "write_onnx", lambda model, example, path, **_: path)
    monkeypatch.setattr(export, "_session_logits", logits)
    with pytest.raises(ConfigurationError, match="logits differ from the student's by up to"):
        export_student(checkpoints["bert"], output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_or_unknown_is_said(checkpoints, tmp_path, monkeypatch):
    with pytest.raises(ConfigurationError, match="no export format 'onx' .did you mean 'onnx'"):
        export_student(checkpoints["bert"], format="onx")
    with pytest.raises(DataError, match="no exported student .* hf-distill export RUN"):
        OnnxStudent(checkpoints["bert"])
    (tmp_path / "export.json").write_text("{")
    with pytest.raises(CorruptStateError, match="export it again"):
        OnnxStudent(tmp_path)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "onnx" in name else found(name))
    with pytest.raises(ConfigurationError, match=r"pip install '\.\[onnx\]'"):
        export_student(checkpoints["bert"])


def test_pickled_weights_are_refused(checkpoints, tmp_path, monkeypatch, bert_tokenizer):
    monkeypatch.setattr(export, "refuse_missing", lambda *_: None)
    model = make_student(bert_tokenizer, ["no", "yes"])
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsafeFileError, match="no model.safetensors"):
        export_student(tmp_path)


# ---- A run, with its recipe or without ----


@pytest.fixture
def exported(monkeypatch, tmp_path):
    """What `export_run` asks for of the student in a folder, without exporting."""
    asked = []
    (tmp_path / "config.json").write_text("{}")

    def export_student(folder, *, notes=(), **options):
        asked.append((folder, {"notes": notes, **options} if notes else options))
        Path(folder, options["output"] or options["format"]).mkdir()
        return ExportReport(
            "onnx", "f", (), 9, (), {"student": Served({}, 1, 1, 1, 1)}, "test", 9, 0, 1, "", {}, notes
        )

    monkeypatch.setattr("hf_distill.runs.export.export_student", export_student)
    return asked


def recipe(tmp_path: Path, held_out, **evaluation) -> None:
    for split in ("train", "test"):
        held_out.select(range(5 if split == "train" else 9)).to_json(tmp_path / f"{split}.jsonl")
    files = {split: (str(tmp_path / f"{split}.jsonl"),) for split in ("train", "test")}
    write_recipe(
        Recipe(
            data={"files": files, "label_names": ["negative", "positive"]},
            teachers={"models": ["org/gone"]},
            student={"model": "org/gone", "max_length": 20},
            training={"output_dir": str(tmp_path)},
            evaluation=evaluation,
        ),
        tmp_path,
    )


def test_a_run_is_compared_on_the_rows_of_its_report(exported, tmp_path, held_out):
    recipe(tmp_path, held_out, batch_size=4, metrics=["nll"])
    there = tmp_path / "there"
    report = export_run(tmp_path, format="int8", output=there)
    ((folder, options),) = exported
    assert len(options.pop("rows")) == 9
    assert options == {
        "format": "int8",
        "output": there,
        "text_columns": ("text",),
        "label_column": "label",
        "metrics": ("nll",),
        "batch_size": 4,
        "dataset_name": "test",
        "max_length": 20,
        "task": "text-classification",
    }
    # There is no verdict that the exported student could be added to.
    assert report.notes == ("The run's verdict was left alone: the run has none.",)
    assert f"Note: {report.notes[0]}" in (there / "export.md").read_text()


def test_training_rows_are_named_as_such(exported, tmp_path, held_out):
    recipe(tmp_path, held_out, split="none")
    export_run(tmp_path)
    ((_, options),) = exported
    assert (len(options["rows"]), options["dataset_name"]) == (5, "train")
    assert "was trained on these rows" in options["notes"][0]


def test_a_run_without_recipe_or_rows_is_compared_on_random_tokens(exported, tmp_path, held_out):
    export_run(tmp_path)
    recipe(tmp_path, held_out)
    (tmp_path / "test.jsonl").unlink()
    export_run(tmp_path, format="int8")
    (_, without_recipe), (_, without_rows) = exported
    assert "rows" not in without_recipe and "no recipe.yaml" in without_recipe["notes"][0]
    assert "rows" not in without_rows and "there is no file" in without_rows["notes"][0]
    assert without_rows["max_length"] == 20


def test_the_command_ends_with_2_for_an_unknown_format(checkpoints):
    done = CliRunner().invoke(app, ["export", checkpoints["bert"], "--format", "onx"])
    assert done.exit_code == 2
    assert "did you mean 'onnx'" in done.stderr


# ---- Every architecture of the documentation; minutes ----


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "int8"])
@pytest.mark.parametrize("name", ["student", "bert", "roberta", "deberta", "modernbert"])
def test_every_architecture(name, format, needs_onnx, checkpoints, tmp_path, bert_tokenizer):
    folder = checkpoints.get(name)
    if folder is None:
        folder = str(tmp_path / "model")
        torch.manual_seed(0)
        config = ModernBertConfig(
            vocab_size=len(bert_tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=48, max_position_embeddings=64, local_attention=8, num_labels=2,
            pad_token_id=0, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3,
        )  # fmt: skip
        ModernBertForSequenceClassification(config).save_pretrained(folder)
        bert_tokenizer.save_pretrained(folder)
    report = export_student(folder, format=format, output=tmp_path / "out")
    assert report.max_difference < (1e-4 if format == "onnx" else 1.0)
    assert report.agreement >= (1.0 if format == "onnx" else 0.9)


@pytest.mark.slow
def test_weights_beyond_one_file(needs_onnx, checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_distill.publishing.onnx._IN_ONE_FILE", 0)
    for format in ("onnx", "int8"):
        report = export_student(checkpoints["bert"], format=format, output=tmp_path / format)
        files = sorted((tmp_path / format).glob("model*"))
        assert [file.name for file in files] == [report.file, f"{report.file}.data"]
        assert report.systems[format].bytes == sum(file.stat().st_size for file in files)
        assert OnnxStudent(tmp_path / format)(["a fine film"]).shape == (1, 2)
