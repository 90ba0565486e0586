"""Looking at what others have stored (`compare`, `cache --info`, a card) imports and calls nothing that it names."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from test_comparing import better, save
from test_verdict import run  # noqa: F401 - a fixture
from typer.testing import CliRunner

from hf_distill.cli import app
from hf_distill.publishing.card import model_card
from hf_distill.publishing.facts import RunFacts, load_facts, save_facts
from hf_distill.teachers.cache.store import Store

CODE = {"use": "strange:Mean", "_target_": "strange.Mean", "py/object": "strange.Mean", "auto_map": {"AutoModel": "strange.Mean"}}  # fmt: skip


class Payload:
    def __reduce__(self):
        return (eval, ("open('RAN', 'w')",))


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """A module that tells when it was imported; checks at the end that nobody did."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("strange.py").write_text("open('RAN', 'w')\ndef Mean(*args, **options): open('RAN', 'w')\n")
    yield
    assert not Path("RAN").exists() and "strange" not in sys.modules


def poisoned(content):
    """The same with code named wherever a mapping is, and in the place of every fusion, loss, metric and callback."""
    if isinstance(content, list):
        return [poisoned(item) for item in content]
    if not isinstance(content, dict):
        return content
    named = {
        key: "strange:Mean" for key in content if key in ("fusion", "loss", "metric", "task", "callback")
    }
    return {key: poisoned(value) for key, value in content.items()} | named | CODE


def test_runs_are_compared(strange, run):  # noqa: F811
    for name, own in (("a", run), ("b", better(run))):
        save(Path(name), own, report=True)
        for file in Path(name).glob("*.json"):
            file.write_text(json.dumps(poisoned(json.loads(file.read_text()))))
        Path(name, "fusion.json").write_text(json.dumps({"fusion": CODE, "fitted_on": [], "reason": "x"}))
        Path(name, "run_state.json").write_text(json.dumps({"format": 2, "fusion": CODE, "losses": CODE}))
        Path(name, "recipe.yaml").write_text(
            "# Written by hf_distill 0.1\nfusion: !!python/object:strange.Mean {}\n"
        )
        Path(name, "training_args.bin").write_bytes(pickle.dumps(Payload()))
    for command in (["compare", "a"], ["compare", "a", "b", "--output", "page"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code in (0, 3, 5), done.output
        assert done.exit_code == 0 or len(done.stderr.strip().splitlines()) == 1, done.stderr
    for folder in "ab":
        Path(folder, "report.json").unlink()
    (rows, *_) = Path("b", "verdict").glob("rows-student-*.npz")
    np.savez(rows, about=np.array([Payload()], dtype=object))
    done = CliRunner().invoke(app, ["compare", "a", "b"])
    assert done.exit_code == 5 and str(rows) in done.stderr


def test_a_cache_is_listed(strange):
    store = Store("cache/" + "0" * 32, "0" * 32)
    store.write(np.arange(2), {"logits": np.zeros((2, 2), "f4")})
    store.write_description({**CODE, "teacher": "strange:Mean", "labels": [CODE], "source": "strange:Mean"})
    np.save(store.folder / "x.npy", np.array([Payload()], dtype=object), allow_pickle=True)
    name = next(store.folder.glob("*.logits.npy"))
    for pickled in (False, True):
        if pickled:
            np.save(name, np.array([Payload(), Payload()], dtype=object), allow_pickle=True)
        Path(f"cache/folder-{'1' * 32}.json").write_text(json.dumps(CODE))
        done = CliRunner().invoke(app, ["cache", "--info", "cache"])
        assert done.exit_code == 0, done.output
        assert "strange" in done.stdout


def test_a_card_is_made(strange):
    facts = RunFacts(**dict.fromkeys(RunFacts.__dataclass_fields__, "strange:Mean"))
    try:
        save_facts(facts, Path())
        for file in Path().glob("*.json"):
            file.write_text(json.dumps(poisoned(json.loads(file.read_text()))))
        card = model_card(
            load_facts(Path()), repo="me/x", report=poisoned({"systems": {"student": {"metrics": {}}}})
        )
    except ValueError as error:  # a fact is none: refused in a sentence
        assert "\n" not in str(error)
        return
    assert ModelCard(str(card)).data
