"""The package as a whole: who may import whom, what an import costs, what is public, what is declared."""

from __future__ import annotations

import ast
import dataclasses
import importlib.metadata
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import hf_distill

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hf_distill"

ORDER = [
    "ground",
    "fusion",
    "losses",
    "rows",
    "tasks",
    "teachers",
    "students",
    "evaluation",
    "verdict",
    "publishing",
    "training",
    "recipe",
    "runs",
    "cli",
]
GROUND = {"errors", "lookup", "processes", "markdown", "files"}

# The mathematics reads and tests without transformers; whole libraries, at module level and inside functions.
LIBRARIES = {
    "fusion": {"torch", "scipy", "sklearn"},
    "losses": {"torch"},
    "ground": {"accelerate", "rich", "xxhash"},
    "evaluation/statistics.py": {"numpy", "scipy"},
    "evaluation/plots.py": {"matplotlib", "numpy"},
    "evaluation/metrics.py": {"datasets", "evaluate", "numpy", "sklearn"},
    "rows/words.py": {"torch", "numpy"},
    "teachers/cache/store.py": {"filelock", "numpy", "xxhash"},
    "training/schedules.py": set(),
    "training/hidden/layer_map.py": set(),
}

HEAVY = {"torch", "transformers", "datasets", "evaluate", "accelerate", "sklearn", "numpy"}

# Declared without an import of ours, each with its reason.
INDIRECT = {"accelerate": "transformers.Trainer refuses to start without it"}

# Imported where somebody asks for what an extra installs.
EXTRAS = {"peft", "onnx", "onnxruntime", "optuna"}


FILES = sorted(PACKAGE.rglob("*.py"))
COMMANDS = {file.stem for file in (PACKAGE / "cli").glob("*.py")} - {"__init__", "shared"}


def room(file: Path) -> str:
    """The room that a file of the package lies in."""
    parts = file.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else "cli" if parts[0] == "__main__.py" else "ground"


def imports(file: Path) -> list[tuple[str, str]]:
    """Module and name of all that a file imports, anywhere in it; ("torch", "") for `import torch`."""
    package = [PACKAGE.name, *file.relative_to(PACKAGE).parts[:-1]]
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*origin, *([node.module] if node.module else [])])
            found += [(origin, alias.name) for alias in node.names]
    return found


def own(name: str) -> Path | None:
    """The file of a module of the package, by its dotted name."""
    path = ROOT / name.replace(".", "/")
    found = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]
    return found[0] if found else None


def defined(file: Path) -> set[str]:
    """What a module gives: what it defines, or, in the face of a folder, hands on."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                names |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
        elif isinstance(node, ast.ImportFrom) and file.name == "__init__.py":
            names |= {alias.name for alias in node.names}
    return names | ({"__version__"} if file == PACKAGE / "__init__.py" else set())


def third_party(files: list[Path]) -> set[str]:
    roots = {name.partition(".")[0] for file in files for name, _ in imports(file)}
    return roots - set(sys.stdlib_module_names) - {PACKAGE.name}


def test_rooms_are_those_that_the_order_names():
    assert {room(file) for file in FILES} == set(ORDER)
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"} == GROUND
    assert " ← ".join(ORDER) in (ROOT / "docs" / "design.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_rooms_import_one_way_and_only_what_a_module_gives(file):
    for module, name in imports(file):
        if not f"{module}.".startswith(f"{PACKAGE.name}."):
            continue
        source = own(f"{module}.{name}") or own(module)
        assert source is not None, f"{module}.{name} is no module of ours"
        assert file == PACKAGE / "__init__.py" or ORDER.index(room(source)) <= ORDER.index(room(file)), (
            f"{room(file)} imports {module}.{name}, which is in a later room"
        )
        if own(f"{module}.{name}") is None:
            assert name in defined(source), f"{name} is not defined in {module}: import it from where it is"
            assert room(source) == room(file) or not name.startswith("_") or name == "__version__", (
                f"{module}.{name} is private to its room"
            )


@pytest.mark.parametrize("where", LIBRARIES)
def test_a_room_imports_only_its_libraries(where):
    files = [file for file in FILES if where in (room(file), str(file.relative_to(PACKAGE)))]
    assert files
    assert third_party(files) <= LIBRARIES[where]


@pytest.mark.parametrize("name", ORDER[1:])
def test_a_room_says_in_a_sentence_what_it_promises(name):
    text = ast.get_docstring(ast.parse((PACKAGE / name / "__init__.py").read_text(encoding="utf-8")))
    assert text and text.splitlines()[0].endswith(".")


def test_across_rooms_only_the_name_of_a_command_repeats():
    seen: dict[str, str] = {}
    for file in FILES:
        name = "/".join(file.relative_to(PACKAGE).with_suffix("").parts[1:])
        if len(file.relative_to(PACKAGE).parts) == 1 or file.name == "__init__.py" or name in COMMANDS:
            continue
        assert name not in seen, f"{room(file)} and {seen[name]} both have a file {name}.py"
        seen[name] = room(file)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_what_is_public_is_documented(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) or file.name == "__main__.py"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_every_dependency_is_imported_and_every_import_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {normal(re.match(r"[\w.-]+", line).group()) for line in project["dependencies"]}
    distribution_of = importlib.metadata.packages_distributions()
    imported = {normal(distribution_of.get(name, [name])[0]) for name in third_party(FILES)}
    extras = [
        line for name, lines in project["optional-dependencies"].items() if name != "dev" for line in lines
    ]
    assert {normal(re.match(r"[\w.-]+", line).group()) for line in extras} >= EXTRAS
    assert imported - declared == EXTRAS, "imported but not declared in pyproject.toml"
    assert declared - imported - set(INDIRECT) == set(), "declared in pyproject.toml but not imported"


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def heavy_modules_after(code: str) -> set[str]:
    """Runs the code in a fresh interpreter; returns which heavy packages it has imported."""
    report = (
        "\nimport sys; print('imported:', *{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code + report], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return HEAVY & set(done.stderr.rpartition("imported:")[2].split())


def test_importing_the_package_imports_nothing_heavy():
    assert heavy_modules_after("import hf_distill; dir(hf_distill); hf_distill.__version__") == set()


@pytest.mark.parametrize("command", ["", "validate", "train", "evaluate", "demo"])
def test_help_imports_nothing_heavy(command):
    code = f"""
from hf_distill.cli import app
try:
    app([*{command.split()!r}, "--help"], prog_name="hf-distill")
except SystemExit as stop:
    assert not stop.code, stop.code
"""
    assert heavy_modules_after(code) == set()


def test_python_m_answers_as_the_command_does():
    done = subprocess.run(
        [sys.executable, "-m", "hf_distill", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "hf-distill" in done.stdout


def test_public_names_are_sorted_and_each_has_its_module():
    assert hf_distill.__all__ == sorted(hf_distill._MODULE_OF)
    assert set(hf_distill.__all__) <= set(dir(hf_distill))


@pytest.mark.parametrize("name", hf_distill.__all__)
def test_public_name_can_be_imported_and_says_what_it_is(name):
    value = getattr(hf_distill, name)
    if inspect.isclass(value) or inspect.isroutine(value):
        assert value.__module__.startswith(f"hf_distill.{hf_distill._MODULE_OF[name]}")
        assert len((value.__doc__ or "").strip()) > 20
        # A dataclass without a docstring gets its signature as one.
        assert not value.__doc__.startswith(f"{name}(")


def test_a_misspelt_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Techer"):
        hf_distill.Techer  # noqa: B018 - the access is what is tested


def test_at_most_ten_training_arguments_are_ours():
    from transformers import TrainingArguments

    names = [
        {field.name for field in dataclasses.fields(c)}
        for c in (hf_distill.DistillationArguments, TrainingArguments)
    ]
    assert 0 < len(names[0] - names[1]) <= 10


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()
