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

# From left to right. A module imports only from layers to the right of its own: a newcomer is given its place here.
LAYERS = (
    {"__main__"},
    {"cli"},
    {"demo"},
    {"demo_corpus", "small_models"},
    {"recipe"},
    {"pruning"},
    {"trainer"},
    {"student_trainer"},
    {"trainer_pushes"},
    {"hub"},
    {"pushed_files"},
    {"verdict", "export", "attention"},
    {"evaluation", "preparation", "audit", "hidden", "resuming"},
    {"ensemble", "accounting", "student", "student_building", "student_speed", "cache"},
    {"card"},
    {"held_out", "targets", "run_facts"},
    {"cached", "known", "pool", "cache_settings"},
    {"data", "callbacks"},
    {"teachers", "collator", "training_args"},
    {"adapters"},
    {"checkpoints"},
    {"views", "tasks", "row_weights", "states"},
    {"fusion", "losses", "metrics", "schedules", "plots"},
    {"alignment", "layer_map", "word_alignment", "comparison"},
    {"lookup", "table", "store", "processes", "timing", "onnx_files", "markdown", "hub_ids"},
    {"errors"},
)
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}

# The mathematics reads and tests without transformers; whole libraries, at module level and inside functions.
LIBRARIES = {
    "fusion": {"torch", "scipy", "sklearn"},
    "losses": {"torch"},
    "alignment": {"torch"},
    "layer_map": set(),
    "word_alignment": {"torch", "numpy"},
    "row_weights": {"torch"},
    "schedules": set(),
    "comparison": {"numpy", "scipy"},
    "plots": {"matplotlib", "numpy"},
    "metrics": {"datasets", "evaluate", "numpy", "sklearn"},
    "lookup": set(),
    "table": set(),
    "store": {"filelock", "numpy", "xxhash"},
    "errors": set(),
}

HEAVY = {"torch", "transformers", "datasets", "evaluate", "accelerate", "sklearn", "numpy"}

# Declared without an import of ours, each with its reason.
INDIRECT = {"accelerate": "transformers.Trainer refuses to start without it"}

# Imported where somebody asks for what an extra installs.
EXTRAS = {"peft", "onnx", "onnxruntime", "optuna"}


def part(file: Path) -> str:
    """The module of the package that a file is, or belongs to where the module is a folder."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = sorted({part(file) for file in FILES} - {"__init__"})


def imports(file: Path) -> set[str]:
    """Full names of all that a file imports, anywhere in it; `from a import b` gives "a.b"."""
    package = [PACKAGE.name, *file.relative_to(PACKAGE).parts[:-1]]
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*origin, *([node.module] if node.module else [])])
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return names


def own_imports(module: str) -> set[str]:
    """The modules of the package that a module imports, itself left out."""
    found = set()
    for file in (file for file in FILES if part(file) == module):
        for name in imports(file):
            root, _, rest = name.partition(".")
            if root == PACKAGE.name and rest != "__version__":
                first = rest.partition(".")[0]
                # `from hf_distill import Teacher` imports the module that Teacher lives in.
                found.add(hf_distill._MODULE_OF.get(first, first))
    return found - {module}


def third_party(files: list[Path]) -> set[str]:
    roots = {name.partition(".")[0] for file in files for name in imports(file)}
    return roots - set(sys.stdlib_module_names) - {PACKAGE.name}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_its_right(module):
    assert module in RANK, (
        f"{module} has no place in LAYERS yet: what may import it, and what does it import?"
    )
    for imported in sorted(own_imports(module)):
        assert imported in RANK, f"{module} imports {imported}, which has no place in LAYERS"
        assert RANK[imported] > RANK[module], (
            f"{module} imports {imported}, which is not to its right in LAYERS"
        )


def test_layers_name_only_modules_that_exist():
    assert sorted(RANK) == MODULES


@pytest.mark.parametrize("module", LIBRARIES)
def test_a_module_imports_only_its_libraries(module):
    assert third_party([file for file in FILES if part(file) == module]) <= LIBRARIES[module]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_reads_in_one_sitting(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 450


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


def test_type_checkers_see_the_names_that_run_time_has():
    body = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body
    (block,) = [
        node for node in body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == hf_distill._MODULE_OF


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
