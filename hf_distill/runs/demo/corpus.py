"""The demo's data: docstrings of the Python packages installed beside it, classified by their library.

Real text without a download. Sources are parsed with `ast`, never imported: importing every module of
eight libraries would take minutes and run code nobody asked for.
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Value

from ...errors import ConfigurationError, DataError

STANDARD_LIBRARY = "standard library"

# Each comes with a dependency of this package; the standard library comes with the interpreter.
LIBRARIES = (
    "huggingface_hub",
    "pandas",
    "scipy",
    "sklearn",
    STANDARD_LIBRARY,
    "sympy",
    "torch",
    "transformers",
)

MASK = "LIBNAME"  # a word no tokenizer splits at punctuation, and no library uses

# Test suites are not installed everywhere; vendored copies would carry another library's text.
_SKIPPED_FOLDERS = frozenset(
    [
        "test",
        "tests",
        "testing",
        "externals",
        "extern",
        "_vendor",
        "vendor",
        "vendored",
        "third_party",
        "site-packages",
        "dist-packages",
    ]
)

# The first pattern is masked wherever it stands (SymPyError, torch_dtype, pytorch-lightning), the second
# only as a word of its own, underscores being word ends (np.array, hf_token), the third before a capital.
_MASKED = re.compile(
    r"(?i:hugging[\s_-]*face(?:[\s_-]*hub)?|\N{HUGGING FACE}|scikits?[\s_-]*learn|sklearn|scipy|numpy|pandas|sympy"
    r"|networkx|pyarrow|pytorch|torch|transformers|c?python|standard[\s_-]+library|stdlib)"
    r"|(?<![^\W_])(?i:hf|np|pd|sp|skl|sk|nx|pa|pt)(?![^\W_])"
    r"|(?<![^\W_])H[fF](?=[A-Z])"
)

_NOT_LETTERS = re.compile(r"[\W\d_]+")
_MINIMUM_CHARACTERS, _MAXIMUM_CHARACTERS = 30, 300
_WHOLE = {"teacher": 10_000, "labelled": 2_000, "unlabelled": 10_000, "validation": 500, "test": 2_000}
_SMALLEST_TEACHER_SPLIT = 2_000


@dataclass(frozen=True)
class DemoCorpus:
    """The five splits of the demo; no text stands in two of them.

    Every split has the columns `text` and `label` (a `ClassLabel` over `label_names`).

    Args:
        label_names: The libraries, in alphabetical order.
        teacher: Labelled rows the teachers were made from, elsewhere: the user does not have them.
        labelled: The user's labelled rows.
        unlabelled: The user's rows without labels: every label is None.
        validation: Labelled rows to choose settings on.
        test: Labelled rows seen by nobody before the report.
    """

    label_names: tuple[str, ...]
    teacher: Dataset
    labelled: Dataset
    unlabelled: Dataset
    validation: Dataset
    test: Dataset


def mask_library_names(text: str) -> str:
    """Replace every library's name and its usual aliases by `MASK`, whatever the case.

    Args:
        text: Any text.

    Returns:
        The text without the names.

    Example:
        >>> mask_library_names("Convert a PyTorch tensor to np.ndarray")
        'Convert a LIBNAME tensor to LIBNAME.ndarray'
    """
    return _MASKED.sub(MASK, text)


def first_paragraph(docstring: str) -> str:
    """Return the text before the first blank line, every run of white space made one space.

    Args:
        docstring: A docstring as it stands in the source.

    Returns:
        One line of text, perhaps empty.

    Example:
        >>> first_paragraph("Compute it\\n    quickly.\\n\\n    Args:\\n")
        'Compute it quickly.'
    """
    return " ".join(re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0].split())


def docstrings(source: bytes) -> Iterator[str]:
    """Yield the docstrings of a module, its classes and its functions, without running the source.

    Args:
        source: The bytes of a Python file. What the running interpreter cannot parse yields nothing.

    Yields:
        Docstrings in the order of the source.
    """
    try:
        with warnings.catch_warnings():
            # Invalid escapes in other people's sources are not this program's to report.
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            module = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    waiting: list[ast.AST] = [module]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                yield docstring
        # Definitions stand among statements only: leaving expressions out saves most of the walk.
        for block in ("finalbody", "orelse", "handlers", "body"):
            waiting.extend(reversed(getattr(node, block, ())))


def comparison_key(text: str) -> str:
    """Return what decides whether two texts are the same one: the letters, in lower case.

    Args:
        text: Any text.

    Returns:
        Words separated by one space; numbers, punctuation and case are gone.

    Example:
        >>> comparison_key("Returns the 2-norm.") == comparison_key("returns the 1-Norm")
        True
    """
    return " ".join(_NOT_LETTERS.split(text.casefold())).strip()


def read_library(folder: Path, *, limit: int, seed: int = 0) -> dict[str, str]:
    """Read the masked first paragraphs of a library's docstrings.

    Args:
        folder: The library's root folder.
        limit: Reading stops after so many different texts: no library dominates, and no time is lost on
            what would be thrown away.
        seed: Of the order in which files are read, so that the limit does not favour the first folders.

    Returns:
        Comparison key to text; texts of 30 to 300 characters.
    """
    files = sorted(
        (file.relative_to(folder) for file in folder.rglob("*.py")),
        key=lambda file: file.as_posix(),
    )
    files = [file for file in files if _SKIPPED_FOLDERS.isdisjoint(file.parts)]
    random.Random(seed).shuffle(files)
    texts: dict[str, str] = {}
    for file in files:
        try:
            source = (folder / file).read_bytes()
        except OSError:
            continue
        for docstring in docstrings(source):
            text = mask_library_names(first_paragraph(docstring))
            if _MINIMUM_CHARACTERS <= len(text) <= _MAXIMUM_CHARACTERS:
                texts.setdefault(comparison_key(text), text)
            if len(texts) >= limit:
                return texts
    return texts


def installed_folders(libraries: Sequence[str] = LIBRARIES) -> dict[str, Path]:
    """Find the root folders of libraries without importing them.

    Args:
        libraries: Names of top-level packages, or `STANDARD_LIBRARY`.

    Returns:
        Name to folder, for those that are installed as folders.
    """
    folders = {}
    for name in libraries:
        if name == STANDARD_LIBRARY:
            folders[name] = Path(sysconfig.get_path("stdlib"))
            continue
        spec = find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            folders[name] = Path(next(iter(spec.submodule_search_locations)))
    return folders


def split_sizes(rows: int) -> dict[str, int]:
    """Size the splits by the rows there are.

    The user's labelled rows, validation and test keep their size; teachers and unlabelled rows shrink
    together where rows are few.

    Args:
        rows: Rows of all classes together.

    Returns:
        Split to its number of rows.

    Raises:
        DataError: Too few rows for teachers worth distilling.
    """
    sizes = dict(_WHOLE)
    fixed = sizes["labelled"] + sizes["validation"] + sizes["test"]
    sizes["teacher"] = sizes["unlabelled"] = min(_WHOLE["teacher"], (rows - fixed) // 2)
    if sizes["teacher"] < _SMALLEST_TEACHER_SPLIT:
        raise DataError(
            f"the demo found {rows} different docstrings in the installed libraries, but needs at least "
            f"{fixed + 2 * _SMALLEST_TEACHER_SPLIT}: install the package with all its dependencies, with their "
            f"sources (.py files)"
        )
    return sizes


def build_demo_corpus(
    *, seed: int = 0, folders: Mapping[str, Path] | None = None, rows_per_class: int = 3_600
) -> DemoCorpus:
    """Read the installed libraries and split what they say about themselves.

    The same versions of the libraries and the same seed give the same rows in the same order. A text that
    two libraries share names neither: it is left out.

    Args:
        seed: Of the choice of files and of the split.
        folders: Class name to the root folder of its sources; None takes `LIBRARIES` as installed.
        rows_per_class: At most so many rows of one class, so that the largest library does not decide.

    Returns:
        The five splits.

    Raises:
        ConfigurationError: Fewer than two libraries.
        DataError: Too few rows.
    """
    folders = installed_folders() if folders is None else folders
    if len(folders) < 2:
        raise ConfigurationError(
            f"the demo found {len(folders)} of its libraries ({', '.join(LIBRARIES)}), but needs at least two classes: "
            f"install the package with all its dependencies"
        )
    label_names = tuple(sorted(folders))
    texts = {name: read_library(folders[name], limit=rows_per_class, seed=seed) for name in label_names}
    owners = Counter(key for library in texts.values() for key in library)
    rows = [
        (text, label)
        for label, name in enumerate(label_names)
        for key, text in texts[name].items()
        if owners[key] == 1
    ]
    random.Random(seed).shuffle(rows)

    features = Features({"text": Value("string"), "label": ClassLabel(names=list(label_names))})
    splits, start = {}, 0
    for split, size in split_sizes(len(rows)).items():
        part = rows[start : start + size]
        start += size
        labels = [None if split == "unlabelled" else label for _, label in part]
        splits[split] = Dataset.from_dict(
            {"text": [text for text, _ in part], "label": labels}, features=features
        )
    return DemoCorpus(label_names=label_names, **splits)
