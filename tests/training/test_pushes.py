"""Pushes of two processes (gloo): one of them speaks with the Hub, both know what came of it, and neither waits for ever."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_cases import PUSHED, WITH_VERDICT, WRITE, write_recipe
from hub_server import HubDouble
from test_distributed import LAUNCH_TWO, environment

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

OTHER = "hf_" + "o" * 34
"""The token of the second process."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory, checkpoints, rows, held_out) -> dict[str, Any]:
    """What the double got, and what the processes and their launcher said."""
    folder = tmp_path_factory.mktemp("pushes")
    rows.select(range(32)).save_to_disk(str(folder / "rows"))
    (folder / "checkpoints.json").write_text(json.dumps(checkpoints))
    write_recipe(folder, checkpoints, rows, held_out)

    class Faults(dict):
        def get(self, kind, default=None):
            return 503 if kind == "commit" and (folder / "fail").exists() else default

    with HubDouble() as hub:
        hub.writers |= {WRITE: "me", OTHER: "me"}
        hub.faults = Faults()
        variables = {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1", "TOKEN_OF_0": WRITE, "TOKEN_OF_1": OTHER,
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, *LAUNCH_TWO, str(Path(__file__).with_name("two_pushes.py")), str(folder)],
            env={**environment(), **variables}, cwd=folder, capture_output=True, text=True, timeout=200,
        )  # fmt: skip
    (folder / "log").write_text(done.stdout + done.stderr)
    ranks = [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]
    assert len(ranks) == 2, (done.stdout + done.stderr)[-6000:]
    return {"hub": hub, "folder": folder, "ranks": ranks, "done": done}


def asked(seen: dict[str, Any], repo: str) -> list[str]:
    return [kind for kind, about, _ in seen["hub"].log if about == repo]


def test_only_the_first_process_speaks_with_the_hub(seen):
    assert OTHER not in {token for _, _, token in seen["hub"].log}
    first, second = seen["ranks"]
    assert first["pushes"] and not second["pushes"]
    assert re.fullmatch(r"http://\S+/me/api/commit/\w+", first["commit"]) and second["commit"] is None


def test_a_repository_that_will_not_do_is_told_to_both(seen):
    for rank in seen["ranks"]:
        assert rank["refused"].startswith("The student could not be pushed to me/api, so nothing was trained")
        assert "the Hub does not accept the token (401)" in rank["refused"]


def test_each_push_arrives_once_and_complete(seen):
    hub, (first, second) = seen["hub"], seen["ranks"]
    assert first["failed"] == second["failed"] == []
    messages = [commit.message for commit in hub.repos["me/api"].branches["main"]]
    assert messages == ["initial", *(f"Training in progress, step {i}" for i in (1, 2)), "End of training"]
    pushed = set(hub.files("me/api"))
    assert {name for name in pushed if "/" not in name} == (PUSHED | {".gitattributes"}) - {"recipe.yaml"}
    # A checkpoint is pushed when each process has saved its part, however late.
    states = {"last-checkpoint/rng_state_0.pth", "last-checkpoint/rng_state_1.pth"}
    first_checkpoint = hub.repos["me/api"].branches["main"][1].files
    assert states <= set(first_checkpoint) and states <= pushed
    assert (first["code"], second["code"]) == (0, 0), (first["output"], first["error"], second["error"])
    assert [commit.message for commit in hub.repos["me/recipe"].branches["main"]] == [
        "initial",
        "Student, card and report",
    ]
    files = {name for name in hub.files("me/recipe") if not name.startswith("figures/")}
    assert files == WITH_VERDICT | {".gitattributes"}
    assert "The student is pushed to me/recipe: http" in first["output"]
    assert second["output"].count("pushed") == 0
    assert first["loaded"] == first["local"]


def test_the_repository_is_asked_for_once_before_training_and_once_for_each_push(seen):
    for repo, pushes in (("me/api", 3), ("me/recipe", 1)):
        assert asked(seen, repo).count("create") == asked(seen, repo).count("auth") == 1 + pushes, repo
        assert asked(seen, repo).count("commit") == pushes, repo


def test_the_card_is_that_of_both(seen):
    card = seen["ranks"][0]["card"]
    assert "processes: 2" in card and "rows per step: 16" in card
    assert "32 rows" in card and "distilled from 2 teachers" in card and "| student" in card


def test_a_push_that_fails_ends_the_launch_with_its_command(seen):
    done, folder = seen["done"], seen["folder"]
    assert done.returncode == 1  # the launcher's own, whatever ours is
    assert "exitcode  : 6" in done.stderr
    assert done.stderr.count("The push to me/failing failed: the Hub has an error of its own (503)") == 1
    assert f"    hf-distill push {folder / 'failing'} me/failing\n" in done.stderr
    assert {path.name for path in (folder / "failing").iterdir()} >= PUSHED
    assert set(seen["hub"].files("me/failing")) == {".gitattributes"}


def test_no_token_is_left_anywhere(seen):
    places = {str(path): path.read_bytes() for path in seen["folder"].rglob("*") if path.is_file()}
    places["requests"] = bytes(seen["hub"].seen)
    assert not [place for place, content in places.items() if re.search(rb"hf_[a-z]{34}", content)]
