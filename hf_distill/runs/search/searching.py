"""The search over a recipe's knobs: trial after trial from one cache of the teachers' outputs, until the best is written."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import __version__
from ...errors import ConfigurationError, CorruptStateError, DataError, how_to_install
from ...files import write_text
from ...fusion import FusionChoice
from ...recipe import yaml12
from ...recipe.search_section import Knob, fusion_name, search_fusions, search_knobs
from ...recipe.sections import Hub, Losses, Recipe
from ...recipe.setup import Setup, written
from ...rows.labels import count_labelled
from ...tasks import family_of
from ...teachers.held_out import choose_fusion
from ...training.trainer import MultiTeacherDistillationTrainer
from ...verdict.recipes_apart import apart
from .progress import TrialBar
from .report import BASELINE_SHARES, SearchReport, Trial

if TYPE_CHECKING:
    import optuna

_MINIMIZED = ("nll", "brier", "label_nll", "label_brier", "mse", "mae")
_ATTEMPTS = 3
# Where a study keeps the numbers of the trials that were interrupted: each is trained again under another number.
_INTERRUPTED = "interrupted"


def search_recipe(
    setup: Setup, *, trials: int = 20, output: str | os.PathLike[str] | None = None
) -> SearchReport:
    """Search the knobs of a recipe by training its student again and again, and write the best recipe.

    The teachers run once over every row; a trial costs a training from their stored outputs. What is searched is the
    section `search` of the recipe. The first trial has the recipe's own values, where they lie within the ranges. A
    search goes on where it was left, also with more trials; one that has them all only reports. An interrupted trial is
    trained again, one that failed is not.

    Args:
        setup: Of the recipe.
        trials: How many trainings in all.
        output: The folder of the search; None: `search_folder`.

    Returns:
        The report; it is in `search.md` and `search.png` too, beside `best.yaml` and `study.db`.

    Raises:
        ConfigurationError: Optuna is not installed; the folder holds the search of another recipe.
        DataError: There are no validation rows with labels to choose by.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ConfigurationError(
            f"a search needs Optuna, not installed here: {how_to_install('optuna', extra='search')}"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigurationError(
            f"a search runs in one process, but {os.environ['WORLD_SIZE']} were launched; start it without a launcher"
        )
    recipe, folder = setup.recipe, search_folder(setup) if output is None else Path(output)
    family = family_of(setup.task)
    knobs, metric = search_knobs(recipe), family.searched if recipe.search is None else recipe.search.metric
    base = _base(setup, folder, metric)
    study = _open_study(folder, base, knobs, metric)
    own = _own_values(setup, knobs)
    if len(_finished(study)) < trials:
        _search(setup, base, study, knobs, metric, trials, own)
    report = _report(study, knobs, metric, own)
    report.save(folder)
    _write_best(setup, base, report, folder)
    return report


def search_folder(setup: Setup) -> Path:
    """The recipe's output folder with `-search` behind its name."""
    return Path(f"{setup.folder}-search")


def _base(setup: Setup, folder: Path, metric: str) -> Setup:
    """What is common to every trial: nothing is pushed or saved, and its evaluations say the metric."""
    recipe = setup.recipe
    training = {
        **recipe.training,
        "output_dir": str(folder),
        "save_strategy": "no",
        "load_best_model_at_end": False,  # what it would load is told from the evaluations instead, see `_Objective`
        "push_to_hub": False,
        "disable_tqdm": True,
    }
    cache = recipe.teachers.cache_dir or str(folder / "cache")
    metrics = (*setup.metrics, *({metric} - set(setup.metrics)))
    return setup.varied(
        teachers=recipe.teachers.model_copy(update={"cache_dir": cache}),
        training=training,
        evaluation=recipe.evaluation.model_copy(update={"metrics": metrics}),
        hub=Hub(),
        search=None,
    )


def _open_study(folder: Path, base: Setup, knobs: list[Knob], metric: str) -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        study = optuna.create_study(
            direction="minimize" if metric in _MINIMIZED else "maximize", **_stored(folder)
        )
        before = study.user_attrs.get("recipe")
    except Exception as error:  # of the data base, whichever library of Optuna's meets it
        raise CorruptStateError(
            f"{folder / 'study.db'} cannot be read as the state of a search "
            f"({' '.join(str(error).split())[:200]}); remove it, or name another folder with --output"
        ) from error
    content = copy.deepcopy(written(base.recipe))
    del content["training"]["output_dir"], content["teachers"]["cache_dir"]
    content["search"] = {"metric": metric, "knobs": [repr(knob) for knob in knobs]}
    if before is None:
        study.set_user_attr("recipe", content)
    elif differing := [key for key, _ in apart(_as_now(before), content)]:
        raise ConfigurationError(
            f"{folder} holds a search of another recipe (they differ in {', '.join(differing[:4])}); name another "
            "folder with --output, or remove this one"
        )
    _refuse_other_trials(study, knobs, metric, folder / "study.db")
    return study


def _refuse_other_trials(study: optuna.Study, knobs: list[Knob], metric: str, file: Path) -> None:
    """Refuse a study whose trials are none of this search, whoever wrote them: the best one's values go into a recipe.

    Raises:
        CorruptStateError: With the trial and what it has.
    """

    def refuse(found: str) -> None:
        raise CorruptStateError(
            f"{file} is not the state of this search: {found}; remove it, or name another folder with --output"
        )

    wanted = "minimize" if metric in _MINIMIZED else "maximize"
    directions = [direction.name.lower() for direction in study.directions]
    if directions != [wanted]:
        refuse(f"it is to {' and '.join(directions)}, and {metric} is to {wanted}")
    ranges = {knob.name: knob for knob in knobs}
    for trial in study.trials:
        values = _values(trial)
        for name, value in values.items():
            if name not in ranges:
                refuse(f"trial {trial.number} has {name!r}, which is no knob of it ({', '.join(ranges)})")
            if value not in ranges[name]:
                refuse(f"trial {trial.number} has {name} = {value!r}, which its range does not hold")
        if trial.state.name != "COMPLETE":
            continue
        if missing := sorted(ranges.keys() - values.keys()):
            refuse(f"trial {trial.number} has no {', '.join(missing)}")
        if trial.value is None or math.isnan(trial.value) or trial.duration is None:
            refuse(f"trial {trial.number} is finished and has no {metric}")


def _stored(folder: Path) -> dict[str, Any]:
    """Where the state of a search is, as `optuna.create_study` takes it."""
    return {"storage": f"sqlite:///{folder / 'study.db'}", "study_name": "search", "load_if_exists": True}


def _as_now(before: Mapping[str, Any]) -> dict[str, Any]:
    """A stored recipe with the fields of today: those that it does not name had their defaults."""
    try:
        content = written(
            Recipe.model_validate({key: part for key, part in before.items() if key != "search"})
        )
    except ValueError:  # nobody's recipe; what differs is said
        return dict(before)
    content["training"].pop("output_dir", None), content["teachers"].pop("cache_dir", None)
    return {**content, "search": before.get("search")}


def _own_values(setup: Setup, knobs: list[Knob]) -> dict[str, Any] | None:
    """The recipe's own values of the knobs, where all lie in the ranges."""
    values = {
        knob.name: fusion_name(setup.recipe.fusion)
        if knob.name == "fusion"
        else getattr(setup.arguments, knob.name)
        for knob in knobs
    }
    return values if all(values[knob.name] in knob for knob in knobs) else None


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _search(
    setup: Setup,
    base: Setup,
    study: optuna.Study,
    knobs: list[Knob],
    metric: str,
    trials: int,
    own: dict[str, Any] | None,
) -> None:
    import optuna

    rows = base.rows
    if "validation" not in rows:
        raise DataError(f"a search chooses on validation rows, but the data has only {', '.join(rows)}")
    trainer = base.trainer()
    if count_labelled(trainer.eval_dataset) == 0:
        raise DataError("a search chooses on validation rows with labels, but these have none")
    study.set_user_attr("report_split", base.split)
    choices = _choices(setup.recipe, base, trainer) if any(knob.name == "fusion" for knob in knobs) else {}
    start = copy.deepcopy(trainer.student).cpu()
    trainer.model_init = lambda: copy.deepcopy(start)  # every trial begins with the same student
    objective = _Objective(setup, metric)
    _enqueue_left(study, own, knobs)

    def draw(trial: optuna.Trial) -> dict[str, Any]:
        objective.begin()
        values = {knob.name: knob.draw(trial) for knob in knobs}
        if "fusion" in values:
            trainer.fusion_choice = choices[values.pop("fusion")]
            trainer.teacher_pool.listen(trainer.fusion_choice)
        return values

    done = len(_finished(study))
    bar = TrialBar(done, trials)
    trainer.add_callback(bar)
    try:
        for _ in range(trials - done):
            # One trial a call, since the study is in its file. What a training prints is the same every time.
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true")
                trainer.hyperparameter_search(
                    hp_space=draw,
                    compute_objective=objective,
                    n_trials=1,
                    backend="optuna",
                    direction=study.direction.name.lower(),
                    **_stored(base.folder),
                    sampler=optuna.samplers.TPESampler(seed=_seed(study, trainer.args.seed)),
                    pruner=optuna.pruners.NopPruner(),
                )
    except KeyboardInterrupt:  # for Optuna the trial has failed
        last = study.trials[-1]
        if last.state is optuna.trial.TrialState.FAIL:
            study.set_user_attr(_INTERRUPTED, sorted({*_interrupted(study), last.number}))
        raise
    finally:
        bar.close()


def _choices(
    recipe: Recipe, base: Setup, trainer: MultiTeacherDistillationTrainer
) -> dict[str, FusionChoice]:
    """Every fusion, fitted or chosen once, by its name."""
    chosen = {fusion_name(recipe.fusion): trainer.fusion_choice}
    for name, spec in search_fusions(recipe).items():
        chosen[name] = chosen.get(name) or choose_fusion(
            base.varied(fusion=spec).target_fusion,
            trainer.eval_dataset,
            pool=trainer.teacher_pool,
            loader=trainer.get_eval_dataloader,
            accelerator=trainer.accelerator,
        )
    return chosen


def _enqueue_left(study: optuna.Study, own: dict[str, Any] | None, knobs: list[Knob]) -> None:
    """Put first what is to be trained whatever the sampler thinks: the recipe's own values, and interrupted trials.

    A trial that failed is not trained again: what ran out of memory would do so again, and no other would be reached.
    For the same reason one in which the process died is begun `_ATTEMPTS` times at most. One that had not drawn all its
    values is drawn anew, as it was. Killed anywhere in here, the next process does the same once more.
    """
    from optuna.trial import TrialState

    running = study.get_trials(states=(TrialState.RUNNING,))
    study.set_user_attr(_INTERRUPTED, sorted({*_interrupted(study), *(trial.number for trial in running)}))
    for trial in running:
        study.tell(trial.number, state=TrialState.FAIL)
    interrupted = set(_interrupted(study))
    begun = [_values(trial) for trial in study.trials]
    stands = [_values(trial) for trial in study.trials if trial.number not in interrupted]
    left = [_values(trial) for trial in study.trials if trial.number in interrupted]
    for values in [*([own] if own and own not in begun else []), *left]:
        complete = values.keys() == {knob.name for knob in knobs}
        if complete and values not in stands and begun.count(values) < _ATTEMPTS:
            study.enqueue_trial(values)
            stands.append(values)


def _seed(study: optuna.Study, first: int) -> int:
    """Of the sampler of the next trial.

    One that begins anew draws as the first did, so it is told how many trials there are. Those that were interrupted do not
    count: a search that goes on draws as one that nothing disturbed.
    """
    return first + len(study.trials) - len(_interrupted(study))


def _interrupted(study: optuna.Study) -> list[int]:
    """The numbers of the trials in which a process died, or was stopped by hand."""
    return list(study.user_attrs.get(_INTERRUPTED, ()))


def _values(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    """What a trial has drawn, or what it was told to draw and had not yet."""
    return {**trial.params, **trial.system_attrs.get("fixed_params", {})}


class _Objective:
    """The metric of the student that a run with these values would keep: its last, or the best by its own choice."""

    def __init__(self, setup: Setup, metric: str) -> None:
        args = setup.arguments
        self._key, self._worst = f"eval_{metric}", math.inf if metric in _MINIMIZED else -math.inf
        self._chosen_by, self._greater = None, bool(args.greater_is_better)
        if args.load_best_model_at_end:
            self._chosen_by = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
        self.begin()

    def begin(self) -> None:
        self._mark: float | None = None
        self._value = self._worst

    def __call__(self, metrics: Mapping[str, float]) -> float:
        value = metrics[self._key]
        value = value if math.isfinite(value) else self._worst
        if self._chosen_by is None:
            return value
        mark = metrics[self._chosen_by] * (1 if self._greater else -1)
        if self._mark is None or mark > self._mark:
            self._mark, self._value = mark, value
        return self._value


def _report(study: optuna.Study, knobs: list[Knob], metric: str, own: dict[str, Any] | None) -> SearchReport:
    trials = tuple(
        Trial(trial.number, trial.params, trial.value, trial.duration.total_seconds())
        for trial in _finished(study)
    )
    number = next((trial.number for trial in trials if trial.values == own), None)
    on_report = study.user_attrs.get("report_split") == "validation"
    return SearchReport(metric, metric in _MINIMIZED, tuple(knobs), trials, number, on_report)


def _write_best(setup: Setup, base: Setup, report: SearchReport, folder: Path) -> Path:
    """Write the recipe with the values of the best trial."""
    recipe = setup.recipe
    values = dict(report.best.values)
    fusion = search_fusions(recipe)[values.pop("fusion")] if "fusion" in values else recipe.fusion
    losses = {name: value for name, value in values.items() if name in Losses.model_fields}
    training = {name: value for name, value in values.items() if name not in losses}
    best = recipe.model_copy(
        update={
            "fusion": fusion,
            "losses": recipe.losses.model_copy(update=losses),
            "training": {**recipe.training, **training, "output_dir": str(folder / "best")},
            "teachers": base.recipe.teachers,
            "search": None,
        }
    )
    path = folder / "best.yaml"
    keys = {**{name: f"losses.{name}" for name in losses}, **{name: f"training.{name}" for name in training}}
    chosen = [keys.get(name, name) for name in report.best.values]
    header = [
        f"Written by hf_distill {__version__}: the best of {len(report.trials)} trials, number {report.best.number}, by "
        f"{report.metric} on the validation rows ({report.best.objective:.4f}).",
        f"The search chose {', '.join(chosen)}; all else is as in its recipe.",
        *([BASELINE_SHARES] if "learning_rate" in training else []),
    ]
    write_text(path, "".join(f"# {line}\n" for line in header) + yaml12.write(written(best)))
    return path
