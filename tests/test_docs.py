"""What the documentation says runs, resolves and exists."""

from __future__ import annotations

import pkgutil
import re
import runpy
import shutil
from pathlib import Path

import pytest
import typer

import hf_distill

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
# README first, also while it does not exist: its tests then fail instead of vanishing.
PAGES = [README, *sorted((ROOT / "docs").glob("**/*.md")), *sorted((ROOT / "recipes").glob("**/*.md"))]
on_every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def fences(text: str) -> list[tuple[str, int, list[str]]]:
    """The fenced blocks: info string, number of the first line inside (from 1), lines."""
    blocks, inside = [], None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("```"):
            if inside is None:
                inside = (line.removeprefix("```").strip(), number + 1, [])
            else:
                blocks.append(inside)
                inside = None
        elif inside is not None:
            inside[2].append(line)
    assert inside is None, f"the fence before line {inside[1]} is never closed"
    return blocks


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def code(text: str) -> list[str]:
    """Every line of code: of fenced blocks, with continued lines joined, and of inline code spans."""
    lines = [
        line for _, _, block in fences(text) for line in "\n".join(block).replace("\\\n", " ").splitlines()
    ]
    return lines + re.findall(r"`([^`\n]+)`", prose(text))


def python_blocks(text: str) -> list[tuple[int, list[str]]]:
    return [(start, lines) for info, start, lines in fences(text) if info == "python"]


@pytest.fixture
def a_users_folder(tmp_path, checkpoints, rows, held_out):
    """What the pages take as given: teachers/bert, …, student, train.jsonl and test.jsonl."""
    for name, folder in checkpoints.items():
        shutil.copytree(folder, tmp_path / (name if name == "student" else f"teachers/{name}"))
    rows.to_json(tmp_path / "train.jsonl")
    held_out.to_json(tmp_path / "test.jsonl")
    return tmp_path


@on_every_page
def test_python_blocks_run(page, a_users_folder, monkeypatch):
    """The blocks of a page run in sequence in one namespace; those fenced "python no-run" only have to parse."""
    tmp_path = a_users_folder
    text = page.read_text(encoding="utf-8")
    for info, start, lines in fences(text):
        assert info.split()[:1] != ["python"] or info in ("python", "python no-run"), (
            f"line {start - 1}: {info}"
        )
        if info == "python no-run":
            compile("\n".join(lines), f"{page.name}, line {start}", "exec")
    source = [""] * len(text.splitlines())
    for start, lines in python_blocks(text):
        source[start - 1 : start - 1 + len(lines)] = lines  # so that a traceback names the page's own line
    if not any(source):
        return
    script = tmp_path / f"{page.stem}.py"
    script.write_text("\n".join(source), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as for a script that is run
    runpy.run_path(str(script), run_name="__main__")  # in this process: an import of torch costs seconds


def test_the_readme_has_python_that_runs():
    assert python_blocks(README.read_text(encoding="utf-8"))


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of the headings."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@on_every_page
def test_relative_links_resolve(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}, which does not exist"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{page.name} links to {target}"


@on_every_page
def test_commands_exist_with_their_options(page):
    from hf_distill.cli import app

    commands = typer.main.get_command(app).commands
    for line in code(page.read_text(encoding="utf-8")):
        for name, rest in re.findall(r"\b(?:hf-distill|-m hf_distill) +([a-z][\w-]*)([^|;&#]*)", line):
            assert name in commands, f"{page.name}: there is no command hf-distill {name} ({line.strip()})"
            options = {"--help"}.union(*(parameter.opts for parameter in commands[name].params))
            unknown = set(re.findall(r"(?<!\S)--[a-z][\w-]*", rest)) - options
            assert not unknown, f"{page.name}: hf-distill {name} has no {', '.join(sorted(unknown))}"


@on_every_page
def test_make_targets_exist(page):
    targets = set(
        re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    for line in code(page.read_text(encoding="utf-8")):
        for name in re.findall(r"(?:^|[;&]) *make +([a-z]+)", line):
            assert name in targets, f"{page.name}: the Makefile has no target {name}"


@on_every_page
def test_dotted_names_of_ours_exist(page):
    """As modules and what is in them; the changelog's first column has what was."""
    text = re.sub(r"^ *\| `hf_distill[^|]*\|", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for name in sorted(set(re.findall(r"\bhf_distill(?:\.\w+)+", text))):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError) as error:
            raise AssertionError(f"{page.name} names {name}, which does not exist: {error}") from error


def public_names() -> list[str]:
    from hf_distill.evaluation.metrics import METRICS

    return [
        *hf_distill.__all__,
        *sorted(metric.__name__ for metric in METRICS.values()),
        "load_metric",
        "METRICS",
    ]


def test_every_public_name_is_documented():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    spans = "\n".join(re.findall(r"`([^`\n]+)`", page))
    missing = [name for name in public_names() if not re.search(rf"\b{name}\b", spans)]
    assert not missing, f"docs/api.md says nothing about {', '.join(missing)}"
