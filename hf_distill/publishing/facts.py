"""What a run really was, kept beside the student so that its card can be written, and written anew, at any time."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CorruptStateError, in_a_line
from ..files import read_json, write_json

FACTS_FILE = "distillation.json"
"""Where a run's folder keeps them; a push leaves it out, the card says it all."""

REPORT_FILE = "report.json"
"""The figures of a run, beside it."""

_FORMAT = 1

NO_LICENCE = "none stated"


@dataclass(frozen=True)
class Origin:
    """A checkpoint that a student came from or learnt from.

    Attributes:
        name: What the run calls it.
        source: Its id on the Hub; None for a folder, whose path is nobody's concern.
        revision: The commit that was loaded; None where nothing says it.
        parameters: How many it has; None where unknown.
        licence: What the README of a folder states; None where the Hub has to be asked.
        over: The id of the model that an adapter is for, or ``a folder``; None for a whole model.
    """

    name: str
    source: str | None = None
    revision: str | None = None
    parameters: int | None = None
    licence: str | None = None
    over: str | None = None


@dataclass(frozen=True)
class RunFacts:
    """What a model card says of a run, apart from its figures.

    Attributes:
        task: The name of the task's pipeline.
        architecture: The student's class.
        parameters: How many it has.
        adapter: Whether only an adapter over ``base`` is saved.
        labels: The label names.
        base: What the student was initialised from; None: from scratch.
        teachers: The teachers, in the order of the run.
        fusion: How they were fused.
        reason: Why so.
        warnings: What speaks against the rows that the fusion was fitted on.
        weights: The fusion's weight of each teacher; empty where it has no fixed ones.
        losses: One sentence for each term of the loss and each thing that changed while training ran.
        rows: How many rows were trained on, and what else is counted, in words.
        training: The settings that decide the result, and how long it took.
        versions: Of the packages.
        references: Of the methods that were used.
        data_commit: The commit of the data set on the Hub that the training rows were loaded from; None where it is unknown.
        older_report: Digest of a report.json that lay there before this training, which says nothing of it.
        thresholds: From which probability on each label is answered, fitted on held-out rows; empty where there are none.
        notes: What else must be said of the training.
        conversions: How outputs of teachers of another kind became the student's, a sentence each.
        card: What the user said for the card: the arguments of `Trainer.create_model_card`.
    """

    task: str
    architecture: str
    parameters: int
    adapter: bool
    labels: tuple[str, ...]
    base: Origin | None
    teachers: tuple[Origin, ...]
    fusion: str
    reason: str
    warnings: tuple[str, ...]
    weights: tuple[float, ...]
    losses: tuple[str, ...]
    rows: Mapping[str, int]
    training: Mapping[str, Any]
    versions: Mapping[str, str]
    references: tuple[str, ...]
    data_commit: str | None = None
    older_report: str | None = None
    card: Mapping[str, Any] = field(default_factory=dict)
    thresholds: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    conversions: tuple[str, ...] = ()


def save_facts(facts: RunFacts, folder: str | Path) -> None:
    """Write them beside the student."""
    content = dataclasses.asdict(facts)
    # What few runs have stands only in theirs, so that the files of others stay what they were.
    rare = ("thresholds", "notes", "conversions")
    content = {name: value for name, value in content.items() if value or name not in rare}
    write_json(Path(folder, FACTS_FILE), {"format": _FORMAT, **content}, indent=1)


def load_facts(folder: str | Path) -> RunFacts | None:
    """Read them; None where there are none.

    Raises:
        CorruptStateError: They cannot be read.
    """
    path = Path(folder, FACTS_FILE)
    if not path.is_file():
        return None
    try:
        content, _ = read_json(path, _FORMAT)
        content |= {
            name: tuple(content.get(name, ()))
            for name in (
                "labels",
                "warnings",
                "weights",
                "losses",
                "references",
                "thresholds",
                "notes",
                "conversions",
            )  # fmt: skip
        }
        content["base"] = content["base"] and Origin(**content["base"])
        content["teachers"] = tuple(Origin(**teacher) for teacher in content["teachers"])
        return RunFacts(**content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptStateError(
            f"{path} does not say how the student was made ({in_a_line(error, 200)}): save the student again, "
            "or remove the file and write a README.md of your own."
        ) from error


def report_digest(folder: str | Path) -> str | None:
    """What a report is known by; None where there is none."""
    path = Path(folder, REPORT_FILE)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def confirm_report(folder: str | Path) -> None:
    """Note that the report of a run was made after its training, even where it reads as one that lay there before."""
    facts = load_facts(folder)
    if facts is not None and facts.older_report is not None:
        save_facts(dataclasses.replace(facts, older_report=None), folder)


def licence_of(data: Any) -> str:
    """The licence that a card's metadata states, as one text.

    Example:
        >>> from huggingface_hub import ModelCardData
        >>> licence_of(ModelCardData(license="other", license_name="my-own")), licence_of(ModelCardData())
        ('other (my-own)', 'none stated')
    """
    stated, name = data.get("license"), data.get("license_name")
    stated = ", ".join(map(str, stated)) if isinstance(stated, list) else stated
    if not stated:
        return NO_LICENCE
    return f"{stated} ({name})" if name else str(stated)
