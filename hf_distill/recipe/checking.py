"""From a recipe's text and the command line's overrides to a checked `Recipe`, with all problems at once."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from ..errors import ConfigurationError, DataError, in_a_line
from ..evaluation.evaluating import computed_names
from ..evaluation.metrics import METRICS, unknown_name
from ..files import no_folder, refuse_file
from ..fusion import build_fusion
from ..lookup import build, find, refuse_untrusted, suggest
from ..losses import ALL_LOSSES, build_distillation_loss
from ..losses.row_weights import ROW_WEIGHTS
from ..tasks import (
    TASKS,
    build_task,
    family_of,
    fits,
    refuse_other_family,
    refuse_other_kind,
    refuse_unfit_conversion,
)
from ..tasks.task import Task
from ..teachers.hub_ids import is_path, missing_folder, no_checkpoint
from ..training.arguments import MOST_SEED
from ..training.objective import computable, unknown_metric
from . import yaml12
from .data_section import check_data, named_files
from .hub_section import check_hub
from .loss_section import check_losses
from .own_code import is_stored, own_code, without
from .problems import Problem, applying, found, from_validation, known_paths
from .search_section import check_search
from .sections import SPLITS, Convert, Recipe
from .student_section import check_student
from .training_section import check_training, training_keys


class LookedAt(NamedTuple):
    """A recipe that was checked without importing anything of its own.

    Attributes:
        recipe: The recipe.
        unchecked: What was left alone, (place in the recipe, name).
    """

    recipe: Recipe
    unchecked: tuple[tuple[str, str], ...]


def load_recipe(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    check_files: bool = True,
    trust: Iterable[str] = (),
) -> Recipe:
    """Read and check a recipe that is to run. No model, tokenizer or data set is loaded.

    A path ``pkg.mod:Name`` in it is imported and called: a recipe is a program of whoever wrote it. `look_at_recipe` reads
    one without. The recipe that a run stored is not taken to be the user's own: it names built-ins, or what is trusted.

    Args:
        path: The YAML file.
        overrides: `section.key=value`, the value in YAML; items of lists by their position
            (`teachers.models.0.name=bert`).
        check_files: Whether the local files and folders it names must exist on this machine.
        trust: What the recipe of a run may name that is not built in, letter by letter.

    Returns:
        The recipe, with the overrides applied and the defaults filled in.

    Raises:
        UnsafeFileError: It is the recipe of a run, and names code that nobody trusted.
        ConfigurationError: Anything wrong with the recipe; the message has one line per problem:
            `file: section.key: sentence`.
        DataError: The recipe is right, but files or folders that it names are missing.

    Example:
        >>> load_recipe("recipes/sst2.yaml", ["losses.temperature=4"]).losses.temperature
        4.0
    """
    path, said = Path(path), set(trust)
    written = _read(path, overrides)
    if written.stored:
        refuse_untrusted(own_code(written.raw), said | written.by_command, path)
    return _checked(path, written, (), check_files)


def look_at_recipe(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    check_files: bool = True,
    trust: Iterable[str] = (),
) -> LookedAt:
    """Read and check anybody's recipe: what it names that is not built in is imported only where it is trusted.

    Args:
        path, overrides, check_files: As for `load_recipe`.
        trust: What may be imported and called to be checked; what ``overrides`` name may too.

    Raises:
        ConfigurationError, DataError: As for `load_recipe`.

    Example:
        >>> look_at_recipe("recipes/sst2.yaml").unchecked
        ()
    """
    path, said = Path(path), set(trust)
    written = _read(path, overrides)
    said |= written.by_command
    unchecked = tuple((place, name) for place, name in own_code(written.raw) if name not in said)
    return LookedAt(_checked(path, written, [name for _, name in unchecked], check_files), unchecked)


class _Written(NamedTuple):
    """What a file and the command line say, and what was wrong with how they say it.

    Attributes:
        raw: Mappings and lists, the overrides applied.
        problems: Keys that stand twice, and overrides that set nothing.
        overridden: What the command line said: keys, or sections that it alone speaks of.
        by_command: The own code that it named.
        stored: Whether the file is one of a run.
    """

    raw: dict[str, Any]
    problems: list[Problem]
    overridden: list[str]
    by_command: set[str]
    stored: bool


def _read(path: Path, overrides: Sequence[str]) -> _Written:
    try:
        text = path.read_bytes()
    except OSError as error:
        reason = (
            "is a folder; name the YAML file in it"
            if path.is_dir()
            else (error.strerror or str(error)).lower()
        )
        raise ConfigurationError(
            f"{path}: the recipe cannot be read: {reason} ({path.absolute()})"
        ) from error
    raw, duplicates, unreadable = yaml12.read(text)
    if unreadable:
        raise ConfigurationError(f"{path}: this is not YAML: {unreadable[0]}")
    if not isinstance(raw, dict):
        raise ConfigurationError(
            f"{path}: a recipe is a mapping with the sections {', '.join(Recipe.model_fields)}; found {found(raw)}"
        )
    # A section whose keys are all commented out reads as null.
    raw = {
        key: {} if value is None and key not in ("task", "register_models") else value
        for key, value in copy.deepcopy(raw).items()
    }
    problems = [Problem(where, sentence) for where, sentence in duplicates]
    in_file, overridden = set(raw), []
    named_in_file = {name for _, name in own_code(raw)}
    for override in overrides:
        key, problem = _apply(raw, override)
        section = key.partition(".")[0]
        # What is wrong with a section that only the command line speaks of is the command line's mistake.
        overridden.append(key if section in in_file else section)
        if problem:
            problems.append(problem)
    if isinstance(raw.setdefault("training", {}), dict):
        raw["training"].setdefault("output_dir", f"runs/{path.stem}")
    by_command = {name for _, name in own_code(raw)} - named_in_file
    return _Written(raw, problems, overridden, by_command, is_stored(path, text))


def _checked(path: Path, written: _Written, unchecked: Collection[str], check_files: bool) -> Recipe:
    overridden = written.overridden
    recipe, found_problems = check(written.raw, check_files=check_files, unchecked=unchecked)
    problems = [*written.problems, *found_problems]
    if problems:
        lines = []
        for problem in dict.fromkeys(problems):
            by_command = any(problem.path == key or problem.path.startswith(f"{key}.") for key in overridden)
            where = [("command line" if by_command else str(path)), problem.path, problem.sentence]
            lines.append(": ".join(part for part in where if part))
        raise (DataError if all(p.missing_file for p in problems) else ConfigurationError)("\n".join(lines))
    assert recipe is not None
    return recipe


def check(
    raw: Mapping[str, Any], *, check_files: bool, unchecked: Collection[str] = ()
) -> tuple[Recipe | None, list[Problem]]:
    """Check what a file holds, and find all that is wrong with it.

    Args:
        raw: The content of the file.
        check_files: As for `load_recipe`.
        unchecked: Own code that no check may import.
    """
    recipe, problems = None, list(_registered(raw, unchecked))
    try:
        recipe = Recipe.model_validate(dict(raw))
    except ValidationError as error:
        problems += from_validation(error, training_keys())
    metrics, registers = list(_metrics(raw)), raw.get("register_models")  # by their names alone
    if unchecked:
        raw = without(raw, unchecked)
    there = {section for section in ("training", "data", "student") if isinstance(raw.get(section), dict)}
    losses, training = _part(raw, "losses"), _part(raw, "training")
    names = [_name(entry) for _, entry in _models(_part(raw, "teachers"))]
    problems += [
        *(check_training(training, elsewhere=known_paths()) if "training" in there else ()),
        *_task(raw),
        *_specs(raw),
        *(check_data(raw["data"]) if "data" in there else ()),
        *_teachers(_part(raw, "teachers"), raw.get("task", "text-classification")),
        *(
            problem
            for problem in (check_student(raw["student"], names) if "student" in there else ())
            # Which types there are is not known before that has run.
            if problem.path != "student.config.model_type" or registers not in unchecked
        ),
        *check_losses(losses, training),
        *check_search(_part(raw, "search"), losses, len(names)),
        *_combinations(raw),
        *metrics,
        *check_hub(_part(raw, "hub"), training),
        *(_missing(raw) if check_files else ()),
        *(_seeds(recipe) if recipe is not None else ()),
    ]
    return recipe, problems


def _registered(raw: Mapping[str, Any], unchecked: Collection[str]) -> Iterator[Problem]:
    """Call what tells `transformers` of the user's own classes, which later checks look for."""
    name = raw.get("register_models")
    if not isinstance(name, str) or name in unchecked:
        return
    try:
        register = find(name, {}, "register_models")
    except ConfigurationError as error:
        yield Problem("register_models", str(error))
        return
    try:
        register()
    except Exception as error:  # somebody's own code
        yield Problem("register_models", f"{name} fails: {type(error).__name__}: {in_a_line(error)}")


def _seeds(recipe: Recipe) -> Iterator[Problem]:
    """The seeds of a verdict count up from the run's own, and the last is a seed too."""
    first = recipe.training.get("seed", 0)
    if isinstance(first, int) and first <= MOST_SEED < first + recipe.evaluation.seeds - 1:
        yield Problem(
            "training.seed",
            f"with evaluation.seeds={recipe.evaluation.seeds} the last is {first + recipe.evaluation.seeds - 1}, expected "
            f"{MOST_SEED} at most: begin with a lower one",
        )


def _apply(raw: dict[str, Any], override: str) -> tuple[str, Problem | None]:
    """Set one `section.key=value` in place; return the key and what was wrong with it."""
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        return override, Problem(override, "an override is written section.key=value")
    value, duplicates, unreadable = yaml12.read(text)
    if unreadable or duplicates:
        return key, Problem(key, f"the value {text!r} is not YAML: {(unreadable or [duplicates[0][1]])[0]}")
    here: Any = raw
    for depth, part in enumerate(parts):
        index: Any = part
        if isinstance(here, list):
            if not part.isdigit() or int(part) >= len(here):
                where = ".".join(parts[:depth])
                return key, Problem(key, f"{where} has {len(here)} items, counted from 0; found {part!r}")
            index = int(part)
        if depth == len(parts) - 1:
            here[index] = value
            return key, None
        path = parts[: depth + 1]
        child = _spelled_out(path, here[index] if isinstance(here, list) else here.get(index))
        if not isinstance(child, (dict, list)):
            return key, Problem(key, f"{'.'.join(path)} is {found(child)}, which has no parts to set")
        here[index] = child
        here = child
    raise AssertionError("the last part returns")


def _spelled_out(path: Sequence[str], value: Any) -> Any:
    """The mapping behind a shorthand, so that an override can set one key of it."""
    if path in (["fusion"], ["losses", "distill"]):
        if value is None:
            value = "linear_pool" if len(path) == 1 else "forward_kl"
        return {"use": value} if isinstance(value, str) else value
    key = {"losses.hidden": "loss", "teachers.models": "model"}.get(".".join(path[:-1]))
    if key is not None and isinstance(value, str):
        return {key: value}
    return {} if value is None else value


def _part(raw: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """A section, or nothing where it is not even a mapping: that has its own line already."""
    part = raw.get(section)
    return part if isinstance(part, dict) else {}


def _task(raw: Mapping[str, Any]) -> Iterator[Problem]:
    task = raw.get("task", "text-classification")
    if isinstance(task, str) and task not in TASKS and ":" not in task:
        yield Problem(
            "task",
            f"unknown task {task!r}; known: {', '.join(TASKS)}{suggest(task, TASKS)}; your own is pkg.mod:Name",
        )
    elif isinstance(task, str):
        try:
            family_of(task)
        except ConfigurationError as error:
            yield Problem("task", str(error))


def _specs(raw: Mapping[str, Any]) -> list[Problem]:
    problems = []
    task = _known_task(raw.get("task", "text-classification"))
    of_task = functools.partial(build_fusion, auto=None if task is None else family_of(task).auto)
    fusion = _built(raw.get("fusion"), of_task, "fusion", problems)
    losses = _part(raw, "losses")
    distill = _built(
        losses.get("distill"),
        functools.partial(build_distillation_loss, table=ALL_LOSSES),
        "losses.distill",
        problems,
    )
    row_weight = functools.partial(build, table=ROW_WEIGHTS, kind="row weight")
    _built(losses.get("row_weight"), row_weight, "losses.row_weight", problems)
    if task is not None:
        problems += _of_other_families(task, fusion, distill, losses.get("row_weight"), _part(raw, "search"))
    weights, models = getattr(fusion, "weights", None), _part(raw, "teachers").get("models")
    if isinstance(weights, tuple) and isinstance(models, list) and len(weights) != len(models):
        problems.append(
            Problem("fusion.weights", f"expected one weight per teacher, {len(models)}; found {len(weights)}")
        )
    return problems


def _known_task(task: Any) -> Task | None:
    """The task; None where there is no such task or family, which has a line of its own."""
    try:
        found = build_task(task) if isinstance(task, str) else None
        return found if found is not None and family_of(found) else None
    except ConfigurationError:
        return None


def _of_other_families(
    task: Task, fusion: Any, distill: Any, row_weight: Any, search: Mapping[str, Any]
) -> Iterator[Problem]:
    """What was made for other predictions than the task's."""
    family = family_of(task)
    for where, given in (("fusion", {"fusion": fusion}), ("losses.distill", {"loss": distill})):
        if next(iter(given.values())) is not None:
            try:
                refuse_other_family(task, **given)
            except ConfigurationError as error:
                yield Problem(where, str(error))
    metric = search.get("metric")
    if isinstance(metric, str) and metric in METRICS and not fits(METRICS[metric], family):
        yield Problem(
            "search.metric",
            f"{metric} is not for the predictions of {task.name}; leave it out for {family.searched}",
        )
    if row_weight is not None and not family.row_weights:
        yield Problem(
            "losses.row_weight",
            f"it compares distributions over classes, which {task.name} does not have; leave it out",
        )


def _built(spec: Any, make: Callable[[Any], Any], where: str, problems: list[Problem]) -> Any:
    written = isinstance(spec, str) or (isinstance(spec, dict) and isinstance(spec.get("use"), str))
    written = written or (
        isinstance(spec, (list, tuple))
        and where == "losses.distill"
        and all(isinstance(one, (str, dict)) for one in spec)
    )
    if not written:  # absent, or of a type that has its own line already
        return None
    try:
        made = make(spec)
    except ConfigurationError as error:
        problems.append(Problem(where, str(error)))
        return None
    if not callable(made) and not hasattr(made, "choose"):
        problems.append(Problem(where, f"{spec!r} is a {type(made).__name__}, which cannot be called"))
    return made


def _models(teachers: Mapping[str, Any]) -> Iterable[tuple[int, dict[str, Any]]]:
    models = teachers.get("models")
    for index, entry in enumerate(models if isinstance(models, list) else []):
        entry = {"model": entry} if isinstance(entry, str) else entry
        if isinstance(entry, dict) and isinstance(entry.get("model"), str):
            yield index, entry


def _name(entry: Mapping[str, Any]) -> str:
    """What a teacher is called, as far as it can be told from an entry whose types are not checked."""
    named = [entry.get("name"), entry.get("adapter"), entry["model"]]
    given = next(value for value in named if isinstance(value, str) and value)
    return given if given == entry.get("name") else Path(given).name


def _teachers(teachers: Mapping[str, Any], task: Any) -> Iterator[Problem]:
    seen = {}
    for index, entry in _models(teachers):
        name = _name(entry)
        yield from _of_other_task(f"teachers.models.{index}", entry, name, task)
        if name in seen:
            yield Problem(
                f"teachers.models.{index}.name",
                f"teacher {seen[name]} is called {name!r} too, and reports go by the name; give it one (name: …)",
            )
        seen.setdefault(name, index)


def _of_other_task(where: str, entry: Any, name: str, task: Any) -> Iterator[Problem]:
    """What is wrong with a teacher that answers something else than the student learns."""
    given = entry if isinstance(entry, dict) else {}
    own, convert = given.get("task"), given.get("convert")
    if own is not None and own not in TASKS:  # a task of one's own has no conversions but those of its family
        yield Problem(
            f"{where}.task", f"unknown task {own!r}; known: {', '.join(TASKS)}{suggest(own, TASKS)}"
        )
        return
    run = _known_task(task)
    if run is None or (
        convert is not None
        and not (isinstance(convert, dict) and convert.keys() <= Convert.model_fields.keys())
    ):
        return
    try:
        refuse_other_kind(own or run, run, name)
    except ConfigurationError as error:
        yield Problem(f"{where}.task", str(error))
        return
    try:
        refuse_unfit_conversion(own or run, run, convert, name)
    except ConfigurationError as error:
        yield Problem(f"{where}.convert", str(error))


def _combinations(raw: Mapping[str, Any]) -> list[Problem]:
    training, evaluation = _part(raw, "training"), _part(raw, "evaluation")
    split, strategy = evaluation.get("split"), training.get("eval_strategy", "no")
    unjudged, single = evaluation.get("verdict") is False, evaluation.get("single_teacher") is True
    given = _part(raw, "data").get("files")
    # Of the Hub's data nobody knows yet which splits there are.
    missing = [name for name in SPLITS if given.get(name) is None] if isinstance(given, dict) else []
    batch_size = evaluation.get("batch_size")
    streaming = _part(raw, "data").get("streaming") is True
    return applying(
        (split in missing, "evaluation.split", f"there is no data.files.{split}"),
        (
            strategy != "no" and "validation" in missing,
            "training.eval_strategy",
            f"{strategy!r} needs data.files.validation",
        ),
        (
            streaming and not (isinstance(training.get("max_steps"), int) and training["max_steps"] > 0),
            "training.max_steps",
            "a stream has no end that is known; say how many steps to train",
        ),
        (
            streaming and _part(raw, "teachers").get("cache_dir") is not None,
            "teachers.cache_dir",
            "the rows of a stream are not known before they come, so no cache is made of them; leave it out, or data.streaming",
        ),
        (
            _part(raw, "data").get("augment") is not None
            and _part(raw, "teachers").get("cache_dir") is not None,
            "data.augment",
            "it shows another image in every epoch, of which a cache would hold none; leave it out, or teachers.cache_dir",
        ),
        (
            unjudged and evaluation.get("seeds", 1) != 1,
            "evaluation.seeds",
            "several are for the verdict, which evaluation.verdict: false leaves out; leave one of the two out",
        ),
        (
            single and unjudged,
            "evaluation.single_teacher",
            "it is for the verdict, which evaluation.verdict: false leaves out; leave one of the two out",
        ),
        (
            single and len(list(_models(_part(raw, "teachers")))) < 2,
            "evaluation.single_teacher",
            "there is one teacher, and its student is the run's own",
        ),
        (
            "per_device_eval_batch_size" in training and batch_size is not None,
            "training.per_device_eval_batch_size",
            "evaluation.batch_size says it already; keep one",
        ),
    )


def _metrics(raw: Mapping[str, Any]) -> Iterator[Problem]:
    """Metrics that nobody knows, and a checkpoint that is to be chosen by one that is not computed."""
    named = _part(raw, "evaluation").get("metrics")
    named = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    for i, name in enumerate(named):
        if sentence := unknown_name(name):
            yield Problem(f"evaluation.metrics.{i}", sentence)
    name, chosen = (
        raw.get("task", "text-classification"),
        _part(raw, "training").get("metric_for_best_model"),
    )
    task = TASKS.get(name) if isinstance(name, str) else None  # a list is no key
    if task is not None and isinstance(chosen, str):
        # What one's own metrics call their values, nobody knows before they are asked.
        known = computable(task) if computed_names(named) is not None else None
        if sentence := unknown_metric(chosen, known):
            yield Problem("training.metric_for_best_model", sentence)


def _missing(raw: Mapping[str, Any]) -> Iterator[Problem]:
    data, student = _part(raw, "data"), _part(raw, "student")
    yield from (
        Problem(where, f"there is no file {Path(name).absolute()}", missing_file=True)
        for where, name in named_files(data)
        if not Path(name).is_file()
    )
    models: list[tuple[str, Any]] = [
        *(
            (f"teachers.models.{index}.{key}", entry.get(key))
            for index, entry in _models(_part(raw, "teachers"))
            for key in ("model", "adapter")
        ),
        ("student.model", student.get("model")),
        ("evaluation.baseline", _part(raw, "evaluation").get("baseline")),
    ]
    for where, name in (*models, ("student.tokenizer", student.get("tokenizer"))):
        if isinstance(name, str) and name and is_path(name):
            if not Path(name).is_dir():
                absent = missing_folder(name) if name.startswith("~") else no_folder(Path(name))
                yield Problem(where, str(absent), missing_file=True)
            elif where != "student.tokenizer" and (sentence := no_checkpoint(name)):
                yield Problem(where, sentence, missing_file=True)
    dataset = data.get("dataset")
    if isinstance(dataset, str) and dataset and is_path(dataset) and not Path(dataset).is_dir():
        yield Problem("data.dataset", no_folder(Path(dataset)), missing_file=True)
    output = _part(raw, "training").get("output_dir")
    if isinstance(output, str):
        try:
            refuse_file(output, "training.output_dir")
        except ConfigurationError as error:
            yield Problem("training.output_dir", str(error).partition(": ")[2].rstrip("."))
