"""Models of strangers: weights that lie elsewhere, are no safetensors or ask for code are refused before anything is read."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch

from hf_distill import Teacher
from hf_distill.errors import DataError, UnsafeFileError
from hf_distill.students.loading import student_config
from hf_distill.teachers.model_files import refuse_unsafe_files


@pytest.fixture
def model(tmp_path, checkpoints) -> Path:
    return Path(shutil.copytree(checkpoints["bert"], tmp_path / "model"))


@pytest.fixture
def victim(tmp_path, model) -> Path:
    """Weights outside of the model's folder, which has none any more."""
    (tmp_path / "victim").mkdir()
    return Path(shutil.move(model / "model.safetensors", tmp_path / "victim" / "x.safetensors"))


def index(model: Path, file: object) -> None:
    content = {"metadata": {}, "weight_map": {"classifier.bias": file}}
    (model / "model.safetensors.index.json").write_text(json.dumps(content))


def set_config(model: Path, **values) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **values}))


def refuse(folder: Path, expected: str, error=UnsafeFileError) -> None:
    with pytest.raises(error, match=expected):
        Teacher.from_pretrained(str(folder))


@pytest.mark.parametrize(
    "how", ["dotdot", "absolute", "link", "linked index", "linked folder in an index", "config"]
)
def test_weights_outside_of_the_folder_are_refused(model, victim, how):
    if how == "dotdot":
        index(model, "../victim/x.safetensors")
    elif how == "absolute":
        index(model, str(victim))
    elif how == "link":
        os.symlink(victim, model / "model.safetensors")
    elif how == "linked index":
        index(model, "x.safetensors")
        shutil.move(model / "model.safetensors.index.json", victim.parent / "i.json")
        os.symlink(victim.parent / "i.json", model / "model.safetensors.index.json")
    elif how == "linked folder in an index":
        os.symlink(victim.parent, model / "sub")
        index(model, "sub/x.safetensors")
    else:
        set_config(model, transformers_weights="../victim/x.safetensors")
    refuse(model, "lies outside of the folder")


def test_pickles_are_refused_under_any_name(model, victim):
    torch.save(safetensors.torch.load_file(victim), model / "x.bin")
    index(model, "x.bin")
    refuse(model, r"its weights are in 'x\.bin'")
    shutil.copy(model / "x.bin", model / "x.safetensors")
    index(model, "x.safetensors")
    refuse(model, "is no whole safetensors file")
    (model / "model.safetensors.index.json").unlink()
    set_config(model, transformers_weights="adapter_model.bin")
    refuse(model, r"its weights are in 'adapter_model\.bin'")


def test_an_adapter_as_pickle_is_refused(model):
    (model / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (model / "adapter_model.bin").write_bytes(b"")
    refuse(model, r"holds no adapter_model\.safetensors")
    (model / "adapter_config.json").write_text(json.dumps({"megatron_config": {}, "megatron_core": "mine"}))
    refuse(model, "megatron_config has a module imported by its name, 'mine'")


@pytest.mark.parametrize(
    "head", [b"", struct.pack("<Q", 2**62) + b"{", struct.pack("<Q", 900) + b"{", b"\x80\x02}q\x00" * 9]
)
def test_headers_are_of_sane_size(model, head):
    (model / "model.safetensors").write_bytes(head)
    refuse(model, "is no whole safetensors file")


@pytest.mark.parametrize("value", [{}, {"weight_map": []}, {"weight_map": {"a": 3}}, []])
def test_an_index_that_is_none_is_a_sentence(model, victim, value):
    (model / "model.safetensors.index.json").write_text(json.dumps(value) if value else "[]")
    refuse(model, r"model\.safetensors\.index\.json", DataError)


def test_linked_folders_and_the_hubs_cache_are_fine(tmp_path, model):
    os.symlink(model, tmp_path / "linked")
    assert Teacher.from_pretrained(str(tmp_path / "linked")).label_names == ("negative", "positive")
    repo = tmp_path / "models--org--bert"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for number, file in enumerate(sorted(model.iterdir())):
        shutil.copy(file, repo / "blobs" / str(number))
        os.symlink(f"../../blobs/{number}", snapshot / file.name)
    refuse_unsafe_files(str(snapshot), "Teacher")
    blob = (snapshot / "model.safetensors").resolve()
    shutil.move(blob, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", blob)
    with pytest.raises(UnsafeFileError, match="lies outside"):
        refuse_unsafe_files(str(snapshot), "Teacher")


@pytest.mark.parametrize(
    "config",
    [
        {"attn_implementation": "org/kernel"},
        {"_attn_implementation": "flash|org/kernel"},
        {"_attn_implementation_internal": {"": "org/kernel:fast"}},
        {"text_config": {"experts_implementation": "org/kernel@main"}},
        {"use_kernels": True},
    ],
)
def test_kernels_are_off_unless_asked_for(model, config):
    set_config(model, **config)
    refuse(model, "fetches and runs the code of a repository")
    refuse_unsafe_files(str(model), "Teacher", trust_remote_code=True)


def test_remote_code_is_off_unless_asked_for(model, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # what transformers would ask
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    set_config(model, model_type="strange", auto_map={"AutoConfig": "evil.Config"})
    refuse(model, "code of its own")
    with pytest.raises(UnsafeFileError, match="code of its own"):
        student_config(str(model))
    assert not (tmp_path / "ran").exists()
