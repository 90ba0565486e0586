"""What a model card says of a distillation, as it really ran.

Whatever comes from outside (names, labels, notes, reasons) passes `escaped` or `code` on its way into the Markdown and
`plain` on its way into the metadata.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..markdown import code, escaped, markdown_table, plain
from ..teachers.hub_ids import hub_id
from .facts import NO_LICENCE, Origin, RunFacts

UNKNOWN = "unknown"
"""The licence of a checkpoint that nobody could be asked about."""

_TEMPLATE = Path(__file__).with_name("model_card_template.md")

# Of what the Hub takes as `license` the usual ones; a card with a word that it does not know is refused with the whole
# commit, so others stand in the text alone.
_LICENCES = frozenset(
    (
        "apache-2.0",
        "mit",
        "bsd-2-clause",
        "bsd-3-clause",
        "cc0-1.0",
        "cc-by-4.0",
        "cc-by-sa-4.0",
        "cc-by-nc-4.0",
    )
    + (
        "cc-by-nc-sa-4.0",
        "gpl-3.0",
        "lgpl-3.0",
        "agpl-3.0",
        "mpl-2.0",
        "openrail",
        "unlicense",
        "isc",
        "zlib",
    )
)
_OF_A_RECIPE = "[recipe.yaml](recipe.yaml) says all of it:\n\n```\nhf-distill train recipe.yaml\n```"
_IN_PYTHON = (
    "It was trained in Python, with `hf_distill.MultiTeacherDistillationTrainer` and the settings above."
)


class Rows(NamedTuple):
    """The rows that a student was trained on, as the recipe names them.

    Attributes:
        dataset: Id of a data set on the Hub, or a folder.
        config: Of the data set.
        revision: Of the data set.
        files: Names of files, where it is no data set.
    """

    dataset: str | None = None
    config: str | None = None
    revision: str | None = None
    files: tuple[str, ...] = ()


def model_card(
    facts: RunFacts,
    *,
    repo: str,
    title: str | None = None,
    report: Mapping[str, Any] | None = None,
    files: Sequence[str] = (),
    captions: Mapping[str, str] = {},  # noqa: B006 - read only
    rows: Rows = Rows(),  # noqa: B008 - immutable
    licences: Mapping[str, str] = {},  # noqa: B006 - read only
) -> ModelCard:
    """The card of a student.

    Args:
        facts: What the run was.
        repo: The repository that the card is for, or the folder's name where there is none yet.
        title: Its headline; None: the last part of ``repo``.
        report: The content of report.json; None where nothing was evaluated.
        files: What else goes into the repository: recipe.yaml, reports and plots are linked where they are named here.
        captions: What is said of the plots, by their files.
        rows: What it was trained on.
        licences: Those of checkpoints on the Hub, by their ids; `UNKNOWN` where one is missing.

    Example:
        >>> facts = RunFacts(
        ...     "text-classification", "BertForSequenceClassification", 9, False, ("no", "yes"), Origin("b", "org/b"),
        ...     (Origin("a", "org/a", "1f3e"),), "linear_pool()", "because", (), (), ("0.5 × x",), {"rows": 4}, {}, {}, (),
        ... )
        >>> card = model_card(facts, repo="me/small", licences={"org/a": "mit", "org/b": "apache-2.0"})
        >>> card.data.base_model, card.data.base_model_relation, card.data.license
        ('org/b', 'finetune', None)
        >>> "The licences differ" in card.text
        True
    """
    title = plain(title or facts.card.get("model_name") or repo.rpartition("/")[2])
    stated = {
        origin: origin.licence or licences.get(origin.source or "", UNKNOWN) for origin in origins(facts)
    }
    systems = _systems(report)
    content = {
        "title": escaped(title),
        "lead": _lead(facts),
        "verdict": escaped(verdict) if (verdict := _verdict(report)) else "",
        "task": _word(facts.task),
        "repo": json.dumps(plain(repo).replace("`", "'"), ensure_ascii=False),
        "labels": ", ".join(map(escaped, facts.labels)),
        "thresholds": ", ".join(
            f"{escaped(name)} {value:.3g}"
            for name, value in zip(facts.labels, facts.thresholds, strict=False)
        ),
        "results": _results(report, systems, files, captions) if systems else None,
        "teachers": _teachers(facts, stated) if facts.teachers else None,
        "fusion": {
            "reason": escaped(facts.reason or "as given").rstrip("."),
            "summary": code(facts.fusion),
            "conversions": [escaped(rule) for rule in facts.conversions],
            "warnings": [escaped(warning) for warning in facts.warnings],
        },
        "losses": [escaped(loss) for loss in (*facts.losses, *facts.notes)],
        "base": _initialised(facts),
        "data": _data(facts, rows),
        "settings": "; ".join(f"{escaped(key)}: {escaped(value)}" for key, value in facts.training.items())
        + ".",
        "licences": _licences(stated),
        "command": _OF_A_RECIPE if "recipe.yaml" in files else _IN_PYTHON,
        "versions": ", ".join(
            f"{escaped(name)} {escaped(version)}" for name, version in facts.versions.items()
        ),
        "references": [
            re.sub(r"arXiv[: ](\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", escaped(reference))
            for reference in facts.references
        ],
    }
    card = ModelCard.from_template(
        _metadata(facts, title, stated, systems, report or {}, rows), template_path=str(_TEMPLATE), **content
    )
    card.text = re.sub(r"\n{3,}", "\n\n", card.text).rstrip() + "\n"
    return card


# ---- The parts of the text ----


def _lead(facts: RunFacts) -> str:
    kind = "an adapter for a " if facts.adapter else "a "
    taught = f", distilled from {_count(facts.teachers)} with hf_distill" if facts.teachers else ""
    return f"For {escaped(facts.task)}: {kind}{code(facts.architecture)} of {facts.parameters:,} parameters{taught}."


def _count(teachers: Sequence[Origin]) -> str:
    return f"{len(teachers)} teacher{'s' if len(teachers) > 1 else ''}"


def _where(origin: Origin) -> str:
    found = _hub_link(origin.source) if origin.source else "a folder"
    return (
        f"{found}, an adapter over {_hub_link(origin.over) if hub_id(origin.over) else escaped(origin.over)}"
        if origin.over
        else found
    )


def _hub_link(repo: str, kind: str = "") -> str:
    return f"[{escaped(repo)}](https://huggingface.co/{kind}{quote(repo)})"


def _teachers(facts: RunFacts, stated: Mapping[Origin, str]) -> dict[str, str]:
    header = ["teacher", "source", "commit", "licence", "weight", "parameters"]
    weights = [f"{weight:.3f}" for weight in facts.weights] or ["–"] * len(facts.teachers)
    table = [
        [
            escaped(teacher.name),
            _where(teacher),
            code(teacher.revision) if teacher.revision else "–" if teacher.source is None else UNKNOWN,
            escaped(stated[teacher]),
            weight,
            "–" if teacher.parameters is None else f"{teacher.parameters:,}",
        ]
        for teacher, weight in zip(facts.teachers, weights, strict=True)
    ]
    return {"count": _count(facts.teachers), "table": markdown_table(header, table)}


def _initialised(facts: RunFacts) -> str:
    if facts.base is None:
        return "The student was trained from scratch."
    commit = f", commit {code(facts.base.revision)}" if facts.base.revision else ""
    name = f" ({escaped(facts.base.name)})" if facts.base.source is None else ""
    return f"The student was initialised from {_where(facts.base)}{name}{commit}."


def _data(facts: RunFacts, rows: Rows) -> str:
    given, known = _listed(facts.card.get("dataset")), hub_id(rows.dataset)
    names = [Path(name).name for name in (rows.dataset, *rows.files) if name]
    source = _hub_link(known, "datasets/") if known and not given else ", ".join(map(escaped, given or names))
    named = {"config": rows.config, "revision": rows.revision}
    if known and facts.data_commit != rows.revision:
        named["commit"] = facts.data_commit
    details = [f"{what} {code(value)}" for what, value in named.items() if value]
    total, labelled = facts.rows.get("rows"), facts.rows.get("labelled")
    details += [] if total is None else [f"{total:,} rows"]
    details += [] if labelled in (None, total) else [f"{labelled:,} of them with a label"]
    return "Training data: " + ", ".join([source or "not named", *details]) + "."


def _licences(stated: Mapping[Origin, str]) -> str:
    """What the licences of all that the student came from amount to, as far as a program can say it."""
    if not stated:
        return "The student was made from no other checkpoint."
    said = []
    known = {origin: licence for origin, licence in stated.items() if licence not in (UNKNOWN, NO_LICENCE)}
    each = "; ".join(f"{escaped(origin.name)}: {escaped(licence)}" for origin, licence in known.items())
    if len(set(known.values())) > 1:
        said.append(
            f"The licences differ, so whoever uses the student has to see what they allow together: {each}."
        )
    elif known:
        said.append(
            f"Stated by {'all' if len(known) == len(stated) else 'some'} of what it was made from: {each}."
        )
    for missing, sentence in (
        (NO_LICENCE, "No licence is stated by"),
        (UNKNOWN, "The licence could not be looked up of"),
    ):
        names = [escaped(origin.name) for origin, licence in stated.items() if licence == missing]
        said += [f"{sentence} {', '.join(names)}."] if names else []
    return " ".join(said)


# ---- Figures ----


def _verdict(report: Mapping[str, Any] | None) -> str:
    verdict = (report or {}).get("verdict")
    return verdict if isinstance(verdict, str) else ""


def _systems(report: Mapping[str, Any] | None) -> dict[str, dict[str, tuple[float, float | None]]]:
    """Every finite metric, with its deviation over seeds where there are several, by system."""
    systems = (report or {}).get("systems")
    found = {}
    for name, system in systems.items() if isinstance(systems, Mapping) else ():
        metrics = system.get("metrics") if isinstance(system, Mapping) else None
        if isinstance(metrics, Mapping):
            deviations = system.get("std") if isinstance(system.get("std"), Mapping) else {}
            values = {key: (_number(value), _number(deviations.get(key))) for key, value in metrics.items()}
            found[name] = {key: value for key, value in values.items() if value[0] is not None}
    return found if any(found.values()) else {}


def _published(report: Mapping[str, Any], systems: Mapping[str, Any]) -> tuple[int | None, dict[str, float]]:
    """The figures of the student that is published, which of several trainings is the first, and that one's seed."""
    seeds, own = report.get("seeds"), systems.get("student", {})
    if isinstance(seeds, list) and len(seeds) > 1:
        by_seed = report["systems"]["student"].get("by_seed")
        first = by_seed.get(str(seeds[0])) if isinstance(by_seed, Mapping) else None
        if isinstance(first, Mapping):
            return seeds[0], {name: value for name in own if (value := _number(first.get(name))) is not None}
    return None, {name: mean for name, (mean, _) in own.items()}


def _number(value: Any) -> float | None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number else None


def _results(
    report: Mapping[str, Any], systems: Mapping[str, Any], files: Sequence[str], captions: Mapping[str, str]
) -> dict[str, Any]:
    metrics = list(dict.fromkeys(name for values in systems.values() for name in values))
    table = [
        [
            escaped(system),
            *(_shown(values[name]) if name in values else "–" for name in metrics),
            f"{size:,}" if isinstance(size := report["systems"][system].get("parameters"), int) else "–",
        ]
        for system, values in systems.items()
    ]
    rows = f": {report['rows']:,} rows" if isinstance(report.get("rows"), int) else ""
    seed, own = _published(report, systems)
    which = ""
    if seed is not None:
        figures = ", ".join(f"{escaped(name)} {value:.4f}" for name, value in own.items())
        which = f" Means ± standard deviations over seeds; the student that is published is of seed {seed}: {figures}."
    notes = report.get("notes")
    reports = [name for name in files if name in ("report.html", "report.md")]
    return {
        "summary": f"On {escaped(report.get('dataset', 'the evaluation set'))}{rows}.{which}",
        "table": markdown_table(["system", *map(escaped, metrics), "parameters"], table),
        "notes": [escaped(note) for note in notes] if isinstance(notes, list) else [],
        "plots": [
            {
                "text": escaped(Path(name).stem.replace("_", " ")),
                "file": quote(name),
                "caption": escaped(captions.get(name, "")),
            }
            for name in files
            if name.endswith(".png")
        ],
        "files": " and ".join(f"[{name}]({name})" for name in reports),
    }


def _shown(value: tuple[float, float | None]) -> str:
    return f"{value[0]:.4f}" + ("" if value[1] is None else f" ± {value[1]:.4f}")


# ---- Metadata ----


def _metadata(
    facts: RunFacts,
    title: str,
    stated: Mapping[Origin, str],
    systems: Mapping[str, Any],
    report: Mapping[str, Any],
    rows: Rows,
) -> ModelCardData:
    options = facts.card
    data_set, commit = hub_id(rows.dataset), facts.data_commit or rows.revision
    task, split = _word(facts.task), plain(report.get("dataset", "evaluation set"))
    results = [
        EvalResult(
            task_type=task,
            dataset_type=data_set or "local",
            dataset_name=data_set or split,
            dataset_config=plain(rows.config) if data_set and rows.config else None,
            dataset_split=split if data_set else None,
            dataset_revision=plain(commit) if data_set and commit else None,
            metric_type=plain(name),
            metric_name=plain(name),
            metric_value=value,
        )
        for name, value in _published(report, systems)[1].items()
    ]
    licences = set(stated.values())
    common = next(iter(licences)) if len(licences) == 1 else None
    base = options.get("finetuned_from") or (facts.base.source if facts.base else None)
    tags = [
        *("hf_distill", "knowledge-distillation", "generated_from_trainer"),
        *(f"teacher:{teacher.source}" for teacher in facts.teachers if teacher.source),
    ]
    return ModelCardData(
        language=options.get("language"),
        license=options.get("license") or (common if common in _LICENCES else None),
        library_name="peft" if facts.adapter else "transformers",
        base_model=base,
        # The Hub knows adapter, finetune, merge and quantized; teachers are none of these.
        base_model_relation=None if base is None else "adapter" if facts.adapter else "finetune",
        datasets=_listed(options.get("dataset_tags")) or ([data_set] if data_set else None),
        metrics=list(map(plain, systems["student"])) if systems.get("student") else None,
        pipeline_tag=(_listed(options.get("tasks")) or [task])[0],
        tags=[*tags, *map(plain, _listed(options.get("tags")))],
        model_name=title if results else None,
        eval_results=results or None,
        distillation=_machine_readable(facts, stated),
    )


def _machine_readable(facts: RunFacts, stated: Mapping[Origin, str]) -> dict[str, Any] | None:
    if not facts.teachers:
        return None
    teachers = [
        {
            "name": plain(teacher.name),
            **({"model": teacher.source} if teacher.source else {}),
            **({"revision": plain(teacher.revision)} if teacher.revision else {}),
            "license": plain(stated[teacher]),
        }
        for teacher in facts.teachers
    ]
    return {
        "teachers": teachers,
        "fusion": plain(facts.fusion),
        "losses": [plain(loss) for loss in facts.losses],
    }


def origins(facts: RunFacts) -> list[Origin]:
    """All that the student came from, each once: it may have been made from a teacher.

    An adapter is nothing without the model that it is for, which is one of them where it has an id.
    """
    sources = {teacher.source for teacher in facts.teachers}
    base = [] if facts.base is None or facts.base.source in sources - {None} else [facts.base]
    found = list(dict.fromkeys([*base, *facts.teachers]))
    known = {origin.source for origin in found}
    over = dict.fromkeys(repo for origin in found if (repo := hub_id(origin.over)) and repo not in known)
    return [*found, *(Origin(repo, repo) for repo in over)]


def _word(task: str) -> str:
    """A task as the Hub writes its tasks, so that it needs no quotes in code either."""
    return re.sub(r"[^a-z0-9-]+", "-", plain(task).lower())


def _listed(value: Any) -> list[str]:
    return [] if not value else [value] if isinstance(value, str) else list(value)
