"""The demo: where its text comes from, and, marked slow, the whole of it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from hf_distill.errors import ConfigurationError, DataError
from hf_distill.runs.demo import corpus as demo_corpus
from hf_distill.runs.demo.corpus import (
    MASK,
    STANDARD_LIBRARY,
    build_demo_corpus,
    comparison_key,
    docstrings,
    first_paragraph,
    installed_folders,
    mask_library_names,
    read_library,
    split_sizes,
)

SPLITS = ("teacher", "labelled", "unlabelled", "validation", "test")

SOURCE = b'''"""The module says something about matrices."""
import no_such_package

raise RuntimeError("whoever imports this file has made a mistake")

class Thing:
    """A thing that holds other things,
    over two lines.

    And more about it.
    """

    def method(self):
        r"""Return the inverse of the thing \\d as a NumPy array."""
        def inner():
            "Short."
        if self:
            async def later():
                """Wait until every thing has been returned."""
'''


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("A PyTorch tensor", f"A {MASK} tensor"),
        ("see torch.nn.Module", f"see {MASK}.nn.Module"),
        ("TorchScript and torch_dtype", f"{MASK}Script and {MASK}_dtype"),
        ("np.ndarray or pd.DataFrame", f"{MASK}.ndarray or {MASK}.DataFrame"),
        ("input and update, a hint, spread", "input and update, a hint, spread"),
        ("scikit-learn, sklearn, SKLEARN", f"{MASK}, {MASK}, {MASK}"),
        ("the Hugging Face Hub, huggingface_hub", f"the {MASK}, {MASK}"),
        ("an hf_token of HfApi", f"an {MASK}_token of {MASK}Api"),
        ("SymPyDeprecationWarning in CPython", f"{MASK}DeprecationWarning in {MASK}"),
        ("the standard library", f"the {MASK}"),
    ],
)
def test_names_of_libraries_are_masked(text, masked):
    assert mask_library_names(text) == masked


def test_the_first_paragraph_is_one_line():
    assert first_paragraph("\n  One\n\ttwo  three.\n   \n  Four.") == "One two three."
    assert first_paragraph("  \n ") == ""


def test_docstrings_are_read_without_running_the_source():
    assert [first_paragraph(text) for text in docstrings(SOURCE)] == [
        "The module says something about matrices.",
        "A thing that holds other things, over two lines.",
        r"Return the inverse of the thing \d as a NumPy array.",
        "Short.",
        "Wait until every thing has been returned.",
    ]


@pytest.mark.parametrize("source", [b"def broken(:\n", b"x = '\0'", b"print 'two'"])
def test_a_source_that_does_not_parse_is_passed_over(source):
    assert list(docstrings(source)) == []


def test_invalid_escapes_of_others_warn_nobody(recwarn):
    assert list(docstrings(b'"""A path C:\\data and \\d."""')) != []
    assert not recwarn


def test_texts_count_as_one_where_only_numbers_and_case_differ():
    assert comparison_key("Returns  the 2-norm of x_1.") == comparison_key("returns the 1-norm of X_2")
    assert comparison_key("the norm") != comparison_key("the norms")


def test_a_library_is_read_without_tests_copies_and_repetitions(tmp_path):
    def write(name, *texts):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(f'def f{i}():\n    """{text}"""' for i, text in enumerate(texts)))

    write("a.py", "Compute the eigenvalues of the 2 matrices.", "Too short.", "long " * 61)
    write(
        "deep/b.py", "Compute the Eigenvalues of the 3 matrices!", "Return a sympy matrix of the same shape."
    )
    write("tests/test_a.py", "Check that the eigenvalues are the right ones.")
    write("deep/_vendor/other.py", "Open a connection to the server of another library.")
    texts = read_library(tmp_path, limit=100)
    assert len(texts) == 2
    assert f"Return a {MASK} matrix of the same shape." in texts.values()
    assert len(read_library(tmp_path, limit=1)) == 1


def test_the_standard_library_needs_no_test_suite_and_no_import():
    folders = installed_folders(["torch", STANDARD_LIBRARY, "no_such_library"])
    assert list(folders) == ["torch", STANDARD_LIBRARY]
    assert (folders["torch"] / "nn").is_dir() and (folders[STANDARD_LIBRARY] / "ast.py").is_file()


def test_splits_shrink_where_rows_are_few():
    assert split_sizes(30_000) == {
        "teacher": 10_000, "labelled": 2_000, "unlabelled": 10_000, "validation": 500, "test": 2_000,
    }  # fmt: skip
    few = split_sizes(12_001)
    assert few["teacher"] == few["unlabelled"] == 3_750 and few["test"] == 2_000
    with pytest.raises(DataError, match="found 8499 different docstrings.*at least 8500"):
        split_sizes(8_499)


@pytest.fixture
def libraries(tmp_path, monkeypatch):
    """Three libraries of 20, 60 and 200 texts; one text stands in two of them."""
    sizes = {"teacher": 60, "labelled": 20, "unlabelled": 60, "validation": 5, "test": 20}
    monkeypatch.setattr(demo_corpus, "_WHOLE", sizes)
    monkeypatch.setattr(demo_corpus, "_SMALLEST_TEACHER_SPLIT", 10)
    folders = {}
    for name, count in {"beta": 60, "alpha": 20, "gamma": 200}.items():
        folders[name] = tmp_path / name
        folders[name].mkdir()
        for start in range(0, count, 10):
            texts = [f"A text about {name} and {_word(i)} in words." for i in range(start, start + 10)]
            texts.append("This text stands in more than one library.")
            source = "\n".join(f'def f{i}():\n    """{text}"""' for i, text in enumerate(texts))
            (folders[name] / f"m{start}.py").write_text(source)
    return folders


def _word(number):
    return "".join(chr(97 + int(digit)) for digit in str(number))


def test_no_text_stands_in_two_splits(libraries):
    corpus = build_demo_corpus(folders=libraries, rows_per_class=80)
    assert corpus.label_names == ("alpha", "beta", "gamma")
    texts = [text for split in SPLITS for text in getattr(corpus, split)["text"]]
    assert len(texts) == len({comparison_key(text) for text in texts}) == 20 + 60 + 79
    assert not any("more than one" in text for text in texts)
    assert [len(getattr(corpus, split)) for split in SPLITS] == [57, 20, 57, 5, 20]


def test_labels_are_the_libraries_and_the_unlabelled_rows_have_none(libraries):
    corpus = build_demo_corpus(folders=libraries, rows_per_class=80)
    for split in SPLITS:
        rows = getattr(corpus, split)
        assert rows.features["label"].names == ["alpha", "beta", "gamma"]
        if split == "unlabelled":
            assert set(rows["label"]) == {None}
        else:
            assert all(corpus.label_names[row["label"]] in row["text"] for row in rows)


def test_the_largest_library_does_not_decide(libraries):
    corpus = build_demo_corpus(folders=libraries, rows_per_class=80)
    count = Counter(text.split()[3] for split in SPLITS for text in getattr(corpus, split)["text"])
    assert count["gamma"] <= 80


def test_the_same_seed_gives_the_same_rows(libraries):
    def content(seed):
        corpus = build_demo_corpus(seed=seed, folders=libraries, rows_per_class=80)
        return json.dumps([getattr(corpus, split)[:] for split in SPLITS])

    assert content(0) == content(0)
    assert content(0) != content(1)


def test_one_library_is_not_enough(tmp_path):
    with pytest.raises(ConfigurationError, match="found 1 of its libraries"):
        build_demo_corpus(folders={"torch": tmp_path})


@pytest.fixture
def small(libraries):
    return build_demo_corpus(folders=libraries, rows_per_class=80)


def test_the_demo_writes_a_recipe_that_runs(small, tmp_path, monkeypatch):
    from hf_distill.recipe import Setup, load_recipe
    from hf_distill.runs.demo.run import write_demo_recipe

    monkeypatch.chdir(tmp_path)
    path = write_demo_recipe(Path("demo"), small, seed=3, vocabulary=300, epochs=2, seeds=1)
    for name in ("bert", "roberta", "deberta"):
        folder = Path("demo/teachers", name)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    recipe = load_recipe(path)
    assert recipe.fusion == "auto" and recipe.evaluation.verdict and recipe.evaluation.split == "test"
    assert recipe.training["output_dir"] == "demo/student" and recipe.training["seed"] == 3
    assert recipe.data.label_names == small.label_names
    assert "hf-distill train demo/recipe.yaml" in path.read_text()
    assert max(map(len, path.read_text().splitlines())) <= 120
    rows = Setup(recipe).rows
    assert {split: len(own) for split, own in rows.items()} == {"train": 77, "validation": 5, "test": 20}
    labels = rows["train"].with_format(None)["label"][:]
    assert sum(label is None for label in labels) == 57
    assert Setup(recipe).student(3)[0].config.n_layers == 1


def test_the_demo_refuses_several_processes(monkeypatch, tmp_path):
    from hf_distill.runs.demo.run import run_demo

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match="2 processes"):
        run_demo(tmp_path)


def test_tokenizers_are_the_same_in_every_run():
    from hf_distill.runs.demo.small_models import unigram, wordpiece

    texts = [f"A text of {_word(i * 7919)} and {_word(i * 104729)} words." for i in range(300)]
    for make in (wordpiece, unigram):
        first, second = (make(texts, 200, 40).backend_tokenizer.to_str() for _ in range(2))
        assert first == second


@pytest.mark.slow
def test_the_student_beats_the_baseline(tmp_path, capsys):
    from hf_distill import Teacher
    from hf_distill.runs.demo.run import run_demo

    report = run_demo(tmp_path)
    systems = report.evaluation.systems
    assert {
        "student",
        "fine-tuned, last step",
        "fine-tuned, best step",
        "ensemble",
        "student+teachers",
    } < set(systems)
    student, baseline = systems["student"], systems[report.claim.baseline]
    assert report.evaluation.rows >= 2_000
    assert student.metrics["accuracy"] > baseline.metrics["accuracy"] + 0.03
    assert student.metrics["nll"] < baseline.metrics["nll"]
    assert student.parameters < min(s.parameters for n, s in systems.items() if n.startswith("teacher:"))

    teachers = [Teacher.from_pretrained(str(folder)) for folder in sorted((tmp_path / "teachers").iterdir())]
    assert len({teacher.label_names for teacher in teachers}) == 3
    assert len({type(teacher.model) for teacher in teachers}) == 3
    assert len({teacher.view.key for teacher in teachers}) == 3

    printed = capsys.readouterr().out
    assert "Verdict: This student is better than the same one trained without teachers" in " ".join(
        printed.split()
    )
    commands = [line.split() for line in printed.splitlines() if line.startswith("    hf-distill ")]
    assert [command[1] for command in commands] == ["train", "train", "compare"]
    assert commands[1][2] == str(tmp_path / "recipe.yaml")
    assert (
        printed.rstrip()
        .splitlines()[-1]
        .startswith(f"The page to look at is {tmp_path / 'student' / 'report.html'}")
    )
    assert (tmp_path / "student" / "report.json").is_file()
