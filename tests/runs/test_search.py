"""The search over a recipe's knobs: what is drawn is trained, nothing is trained twice, and the best can be trained again."""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
from pathlib import Path

import optuna
import pytest
from typer.testing import CliRunner

import hf_distill.runs.search.searching as searching
from hf_distill.cli import app
from hf_distill.errors import ConfigurationError, CorruptStateError, DataError
from hf_distill.recipe import Recipe, Setup, load_recipe
from hf_distill.recipe.search_section import Knob, search_fusions, search_knobs
from hf_distill.runs.search.report import SearchReport, Trial, draw_search
from hf_distill.runs.search.searching import search_recipe

BASE = {
    "data": {"dataset": "org/data"},
    "teachers": {"models": ["org/a", "org/b"]},
    "student": {"model": "org/small"},
}


# ---- The section ----


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("temperature: 3", "search.temperature: expected [lowest, highest] or [lowest, highest, log]; found 3"),
        ("temperature: [1, 2, 3]", "expected [lowest, highest] or [lowest, highest, log]"),
        ("temperature: [1, true]", "expected [lowest, highest] or [lowest, highest, log]"),
        ("temperature: [4, 1]", "search.temperature: expected the lower number first; found [4, 1]"),
        ("temperature: [0, 8]", "search.temperature: expected numbers above 0, found [0, 8]"),
        ("distill_weight: [-1, 1]", "search.distill_weight: expected numbers from 0, found [-1, 1]"),
        ("distill_weight: [0, 1, log]", "a logarithmic range begins above 0, found [0, 1, 'log']"),
        ("label_share: [0, 2]", "search.label_share: expected numbers from 0 to 1, found [0, 2]"),
        ("task_weight: [0, 1]", "losses.task_weight is a schedule, which no single number replaces"),
        ("learning_rat: [1, 2]", "search.learning_rat: unknown key, found [1, 2] (did you mean 'learning_rate'?)"),
        ("fusion: [auto]", "search.fusion: expected at least 2 of them, found ['auto']"),
        ("fusion: [auto, log_pol]", "search.fusion.1: there is no fusion named 'log_pol'"),
        ("fusion: [auto, auto]", "search.fusion.1: it is number 0 too, counted from 0"),
        ("fusion: [auto, {use: log_pool, weights: [1, 2, 3]}]", "search.fusion.1: expected one weight per teacher, 2"),
        ("metric: ece", "search.metric: expected one of nll, brier, accuracy"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_section_is_said_with_its_path(section, line, tmp_path):
    file = tmp_path / "r.yaml"
    losses = {"task_weight": {"use": "linear", "start": 1, "end": 0.5}}
    file.write_text(json.dumps({**BASE, "losses": losses})[:-1] + f', "search": {{{section}}}}}')
    with pytest.raises(ConfigurationError) as raised:
        load_recipe(file)
    (found,) = str(raised.value).splitlines()
    assert line in found


def test_the_usual_knobs_are_searched_where_none_is_named():
    recipe = Recipe(**BASE, training={"learning_rate": 1e-3}, search={"metric": "accuracy"})
    assert search_knobs(recipe) == [
        Knob("temperature", 1.0, 8.0),
        Knob("distill_weight", 0.1, 2.0, log=True),
        Knob("learning_rate", 2e-4, 5e-3, log=True),
        Knob("fusion", choices=("auto", "linear_pool")),
    ]
    one = {**BASE, "teachers": {"models": ["org/a"]}, "losses": {"temperature": {"use": "linear"}}}
    assert [knob.name for knob in search_knobs(Recipe(**one))] == ["distill_weight", "learning_rate"]


def test_named_knobs_are_all_that_is_searched():
    fusions = ["linear_pool", {"use": "log_pool", "weights": [1, 2]}]
    recipe = Recipe(**BASE, search={"learning_rate": [1e-5, 1e-3, "log"], "fusion": fusions})
    rate, fusion = search_knobs(recipe)
    assert rate == Knob("learning_rate", 1e-5, 1e-3, log=True)
    assert fusion.choices == ("linear_pool", "log_pool(weights=[1, 2])")
    assert search_fusions(recipe)[fusion.choices[1]] == fusions[1]
    assert 1e-4 in rate and 2e-3 not in rate and "linear_pool" in fusion and "auto" not in fusion


# ---- The search ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory, checkpoints, rows, held_out) -> Path:
    """A recipe on real files, and the search of three trials."""
    folder = tmp_path_factory.mktemp("search")
    for name, dataset in (("train", rows), ("validation", held_out), ("test", held_out.select(range(5)))):
        dataset.to_json(folder / f"{name}.jsonl")
    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "validation", "test")}
    still = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    content = {
        "data": {"files": files, "label_names": ["negative", "positive"]},
        "teachers": {"models": [checkpoints["bert"], checkpoints["roberta"]]},
        "student": {
            "config": {"model_type": "distilbert", "dim": 24, "n_layers": 1, "n_heads": 2, "hidden_dim": 48, **still},
            "tokenizer": checkpoints["bert"],
        },
        "fusion": "linear_pool",
        "losses": {"temperature": 2, "distill_weight": 0.5},
        "training": {
            "use_cpu": True, "max_steps": 6, "learning_rate": 1e-2, "output_dir": str(folder / "run"), "seed": 3,
            "eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4,
            "load_best_model_at_end": True, "metric_for_best_model": "accuracy", "disable_tqdm": True,
        },
        "evaluation": {"metrics": ["accuracy"]},
        "search": {
            "temperature": [1, 8],
            "learning_rate": [1e-3, 1e-1, "log"],
            "fusion": ["linear_pool", {"use": "log_pool", "weights": [3, 1]}],
        },
    }  # fmt: skip
    (folder / "tiny.yaml").write_text(json.dumps(content))
    return folder


def test_a_study_of_before_is_read(tmp_path, monkeypatch):
    before = Path(__file__).parent.parent / "fixtures" / "before_rooms" / "search"
    (tmp_path / "run-search").mkdir()
    with contextlib.closing(sqlite3.connect(tmp_path / "run-search" / "study.db")) as study:
        study.executescript((before / "study.sql").read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    report = search_recipe(Setup(load_recipe(before / "recipe.yaml", check_files=False)), trials=3)
    assert [round(trial.objective, 4) for trial in report.trials] == [0.6933, 0.6934, 0.6967]
    assert (report.best.number, report.own) == (0, 0)
    assert load_recipe("run-search/best.yaml", check_files=False).losses.temperature == 2


@pytest.fixture
def watched(monkeypatch):
    """What each training really had: fusion, temperature and learning rate of its first step, and the student's start."""
    from hf_distill import MultiTeacherDistillationTrainer as Trainer

    trained = []
    train = Trainer.train

    def watch(self, *arguments, **options):
        trained.append(set())
        return train(self, *arguments, **options)

    def targets(self, inputs):
        if self.model.training:
            trained[-1].add(
                (
                    type(self.fusion).__name__,
                    self.args.temperature,
                    self.args.learning_rate,
                    self.teacher_pool._heard[0],
                )
            )
        return make(self, inputs)

    make = Trainer.teacher_targets
    monkeypatch.setattr(Trainer, "train", watch)
    monkeypatch.setattr(Trainer, "teacher_targets", targets)
    return trained


@pytest.fixture(scope="module")
def first(folder) -> SearchReport:
    return search_recipe(Setup(load_recipe(folder / "tiny.yaml")), trials=2, output=folder / "search")


def test_a_search_trains_what_it_draws_and_goes_on_where_it_was_left(folder, first, watched):
    assert [trial.number for trial in first.trials] == [0, 1]
    assert first.trials[0].values == {"temperature": 2.0, "learning_rate": 1e-2, "fusion": "linear_pool"}
    report = search_recipe(Setup(load_recipe(folder / "tiny.yaml")), trials=4, output=folder / "search")
    assert report.trials[:2] == first.trials
    assert (len(watched), len(report.trials), report.own) == (2, 4, 0)
    names = {"linear_pool": "LinearPool", "log_pool(weights=[3, 1])": "LogPool"}
    for seen, trial in zip(watched, report.trials[2:], strict=True):
        values = trial.values
        assert seen == {(names[values["fusion"]], values["temperature"], values["learning_rate"], 0)}
        assert 1 <= values["temperature"] <= 8 and 1e-3 <= values["learning_rate"] <= 1e-1
    assert report.best.objective == min(trial.objective for trial in report.trials)
    assert not list((folder / "search").glob("**/checkpoint-*"))
    assert (folder / "search" / "search.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "search" / "search.md").read_text().count("\n| ") == 5


def test_the_best_recipe_trains_to_the_objective_that_the_search_found(folder, first):
    report = search_recipe(Setup(load_recipe(folder / "tiny.yaml")), trials=2, output=folder / "search")
    best = load_recipe(folder / "search" / "best.yaml")
    assert best.training["output_dir"] == str(folder / "search" / "best")
    assert best.training["load_best_model_at_end"] is True
    assert best.losses.temperature == report.best.values["temperature"]
    assert (best.losses.distill_weight, best.search, best.hub.push) == (0.5, None, False)
    # The metric, and no checkpoints; the training stays what it is.
    metrics = best.evaluation.model_copy(update={"metrics": ("accuracy", "nll")})
    training = {**best.training, "load_best_model_at_end": False, "save_strategy": "no"}
    trainer = Setup(best.model_copy(update={"evaluation": metrics, "training": training})).trainer()
    trainer.train()
    evaluations = [entry for entry in trainer.state.log_history if "eval_nll" in entry]
    kept = max(
        evaluations, key=lambda entry: entry["eval_accuracy"]
    )  # of equal ones the first, as the trainer does
    assert kept["eval_nll"] == pytest.approx(report.best.objective, rel=1e-5)
    assert len({entry["eval_nll"] for entry in evaluations}) == 2


def test_a_finished_search_only_reports(folder, first, monkeypatch, watched):
    monkeypatch.setattr(
        "hf_distill.recipe.setup.load_data", lambda recipe: pytest.fail("nothing is to be loaded")
    )
    done = CliRunner().invoke(
        app, ["search", str(folder / "tiny.yaml"), "--trials", "2", "--output", str(folder / "search")]
    )
    assert done.exit_code == 0, done.output
    assert watched == []
    assert "is the best of" in done.stdout
    assert f"hf-distill train {folder / 'search' / 'best.yaml'}" in done.stdout


@pytest.mark.slow
def test_an_interrupted_trial_is_trained_again_with_its_values(folder, first, watched):
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{folder / 'search' / 'study.db'}")
    left = study.ask()
    fusions = ("linear_pool", "log_pool(weights=[3, 1])")
    values = {
        "temperature": left.suggest_float("temperature", 1, 8),
        "learning_rate": left.suggest_float("learning_rate", 1e-3, 1e-1, log=True),
        "fusion": left.suggest_categorical("fusion", fusions),
    }
    done = len(study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)))
    report = search_recipe(
        Setup(load_recipe(folder / "tiny.yaml")), trials=done + 1, output=folder / "search"
    )
    assert report.trials[-1].values == values
    assert (len(watched), len(report.trials)) == (1, done + 1)


class _Broken(Exception):
    """A training that ends as if memory had run out, or somebody had pressed Ctrl-C."""


@pytest.fixture
def broken(monkeypatch):
    """Lets trainings raise what is put in; an empty list lets them go through."""
    from hf_distill import MultiTeacherDistillationTrainer as Trainer

    raised, train = [], Trainer.train

    def broken_train(self, *arguments, **options):
        if raised:
            self._hp_search_setup(options["trial"])  # the values are drawn before anything can fail
            raise raised.pop()
        return train(self, *arguments, **options)

    monkeypatch.setattr(Trainer, "train", broken_train)
    return raised


@pytest.mark.slow
def test_a_trial_that_fails_does_not_stand_in_the_way_for_good(folder, tmp_path, broken):
    recipe = load_recipe(folder / "tiny.yaml")
    broken.append(_Broken("out of memory"))
    with pytest.raises(_Broken):
        search_recipe(Setup(recipe), trials=1, output=tmp_path)
    report = search_recipe(Setup(recipe), trials=1, output=tmp_path)
    (trial,) = report.trials
    assert (trial.number, report.own) == (1, None)
    assert trial.values["temperature"] != 2.0  # the recipe's own are the failed trial's, and are left


def test_a_trial_that_was_interrupted_by_hand_is_trained_again(folder, tmp_path, broken):
    recipe = load_recipe(folder / "tiny.yaml")
    broken.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        search_recipe(Setup(recipe), trials=1, output=tmp_path)
    report = search_recipe(Setup(recipe), trials=1, output=tmp_path)
    assert [trial.number for trial in report.trials] == [1] == [report.own]


def test_a_trial_in_which_the_process_dies_again_and_again_is_left(folder):
    study = optuna.create_study()
    own, other = {"temperature": 2.0}, {"temperature": 3.0}

    def dies(times: int) -> list[dict[str, float]]:
        """What was begun by each of some processes that died in it."""
        begun = []
        for _ in range(times):
            searching._enqueue_left(study, own, [Knob("temperature", 1, 8)])
            begun.append({"temperature": study.ask().suggest_float("temperature", 1, 8)})
        return begun

    study.enqueue_trial(other)  # of a process that died before it began
    assert dies(1) == [other]
    begun = dies(6)
    assert (begun.count(own), begun.count(other)) == (3, 2)
    assert begun[-1] not in (own, other)


@pytest.mark.parametrize("dies", [(), (0,), (1,), (1, 2), (3, 3), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("drawn", [0, 1, 2])
def test_a_search_in_which_processes_die_draws_as_one_that_nothing_disturbs(dies, drawn):
    """Before it has drawn anything, between two knobs, or while it trains."""
    knobs = [Knob("temperature", 1, 8), Knob("learning_rate", 1e-3, 1e-1, log=True)]
    own = {"temperature": 2.0, "learning_rate": 1e-2}

    def searched(deaths: list[int]) -> list[tuple[dict[str, float], float]]:
        study = optuna.create_study()
        searching._enqueue_left(study, own, knobs)
        while len(done := searching._finished(study)) < 14:  # more than the sampler draws at random
            study.sampler = optuna.samplers.TPESampler(seed=searching._seed(study, 3))
            trial = study.ask()
            if len(done) in deaths:
                deaths.remove(len(done))
                for knob in knobs[:drawn]:
                    knob.draw(trial)
                searching._enqueue_left(study, own, knobs)  # of the next process
                continue
            values = {knob.name: knob.draw(trial) for knob in knobs}
            study.tell(trial, values["temperature"] + 10 * values["learning_rate"])
        return [(trial.params, trial.value) for trial in done]

    assert searched(list(dies)) == searched([])


@pytest.mark.slow
def test_the_bar_shows_steps_of_all_trials_while_the_first_one_runs(folder, tmp_path, monkeypatch, capsys):
    from hf_distill.runs.search.progress import TrialBar

    seen, step = [], TrialBar.on_step_end

    def watched_step(self, *arguments, **options):
        step(self, *arguments, **options)
        seen.append((self.bar.desc, self.bar.n, self.bar.total))

    monkeypatch.setattr(TrialBar, "on_step_end", watched_step)
    search_recipe(Setup(load_recipe(folder / "tiny.yaml")), trials=2, output=tmp_path)
    assert seen[:2] == [("Trial 1 of 2: ", 1, 12), ("Trial 1 of 2: ", 2, 12)]
    assert seen[6] == ("Trial 2 of 2: ", 7, 12)
    monkeypatch.undo()
    search_recipe(Setup(load_recipe(folder / "tiny.yaml")), trials=3, output=tmp_path)
    last = capsys.readouterr().err.rpartition("Trial")[2]
    assert last.startswith(" 3 of 3: 100%") and "6/6" in last


def test_the_best_recipe_says_what_was_searched_and_whose_learning_rate_it_is(folder, first, tmp_path):
    head = (folder / "search" / "best.yaml").read_text().partition("\ntask:")[0].splitlines()
    assert all(line.startswith("# ") for line in head)
    text = " ".join(line.removeprefix("# ") for line in head)
    assert "The search chose losses.temperature, training.learning_rate, fusion;" in text
    assert "the verdict's fine-tuned baseline is trained at this learning rate too" in text
    assert "the verdict's fine-tuned baseline is trained at this learning rate too" in str(first)
    others = tuple(knob for knob in first.knobs if knob.name != "learning_rate")
    assert "baseline" not in str(SearchReport("nll", True, others, first.trials))


@pytest.mark.slow
def test_a_baseline_is_searched_by_itself(folder, tmp_path):
    alone = ["losses.distill_weight=0", "losses.task_weight=1", "losses.hidden=[]"]
    alone += [
        "search={learning_rate: [1e-3, 1e-1, log]}",
        f"teachers.cache_dir={folder / 'search' / 'cache'}",
    ]
    report = search_recipe(Setup(load_recipe(folder / "tiny.yaml", alone)), trials=1, output=tmp_path)
    assert [trial.values for trial in report.trials] == [{"learning_rate": 1e-2}]
    best = load_recipe(tmp_path / "best.yaml")
    assert (best.losses.distill_weight, best.losses.task_weight) == (0, 1)
    assert "The search chose training.learning_rate; all else" in (tmp_path / "best.yaml").read_text()
    assert not (tmp_path / "cache").exists()


def test_another_recipe_needs_another_folder(folder, first):
    for override, path in (
        ("losses.distill_weight=0.7", "losses.distill_weight"),
        ("search.temperature=[1, 4]", "search"),
    ):
        with pytest.raises(
            ConfigurationError, match=f"holds a search of another recipe .they differ in {path}"
        ):
            search_recipe(Setup(load_recipe(folder / "tiny.yaml", [override])), output=folder / "search")


def test_a_search_needs_validation_rows_with_labels(folder, tmp_path):
    train_only = [
        "data.files.validation=",
        "training.eval_strategy=no",
        "training.load_best_model_at_end=false",
    ]
    with pytest.raises(DataError, match="chooses on validation rows, but the data has only train, test"):
        search_recipe(Setup(load_recipe(folder / "tiny.yaml", train_only)), output=tmp_path / "a")
    (tmp_path / "bare.jsonl").write_text('{"text": "a film", "label": -100}\n')
    with pytest.raises(DataError, match="validation rows with labels, but these have none"):
        search_recipe(
            Setup(load_recipe(folder / "tiny.yaml", [f"data.files.validation={tmp_path / 'bare.jsonl'}"])),
            output=tmp_path / "b",
        )


def test_a_study_whose_trials_are_of_another_search_is_refused(folder, tmp_path):
    """Whoever wrote it: the values of the best trial become a recipe."""
    recipe = load_recipe(folder / "tiny.yaml")
    within = {"temperature": 2.0, "learning_rate": 1e-2, "fusion": "linear_pool"}
    spaces = {
        "temperature": optuna.distributions.FloatDistribution(1, 1000),
        "learning_rate": optuna.distributions.FloatDistribution(1e-3, 1e-1, log=True),
        "fusion": optuna.distributions.CategoricalDistribution(("linear_pool", "evil:Fusion")),
        "output_dir": optuna.distributions.CategoricalDistribution(("/elsewhere",)),
    }
    for number, (values, options, said) in enumerate(
        (
            ({**within, "output_dir": "/elsewhere"}, {"value": 0.1}, "'output_dir', which is no knob"),
            ({**within, "temperature": 900.0}, {"value": 0.1}, "temperature = 900.0, which its range does not"),
            ({**within, "fusion": "evil:Fusion"}, {"value": 0.1}, "fusion = 'evil:Fusion', which its range"),
            ({"temperature": 2.0}, {"value": 0.1}, "trial 0 has no fusion, learning_rate"),
            (within, {"system_attrs": {"fixed_params": {"hub_token": "x"}}, "state": optuna.trial.TrialState.WAITING},
             "'hub_token', which is no knob"),
            (None, {"direction": "maximize"}, "it is to maximize, and nll is to minimize"),
        )
    ):  # fmt: skip
        place = tmp_path / str(number)
        place.mkdir()
        direction = options.pop("direction", "minimize")
        study = optuna.create_study(direction=direction, **searching._stored(place))
        if values is not None:
            known = {} if "system_attrs" in options else values
            study.add_trial(
                optuna.trial.create_trial(
                    params=known, distributions={name: spaces[name] for name in known}, **options
                )
            )
        with pytest.raises(CorruptStateError, match="is not the state of this search") as refused:
            search_recipe(Setup(recipe), trials=1, output=place)
        assert said in str(refused.value) and str(place / "study.db") in str(refused.value)
        assert not (place / "best.yaml").exists()


def test_what_a_search_cannot_work_with_is_said(folder, tmp_path, monkeypatch):
    recipe = load_recipe(folder / "tiny.yaml")
    (tmp_path / "study.db").write_text("no data base")
    with pytest.raises(CorruptStateError, match="cannot be read as the state of a search"):
        search_recipe(Setup(recipe), output=tmp_path)
    with monkeypatch.context() as launched:
        launched.setenv("WORLD_SIZE", "2")
        with pytest.raises(ConfigurationError, match="one process, but 2 were launched"):
            search_recipe(Setup(recipe), output=tmp_path)
    monkeypatch.setattr(searching.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install '\.\[search\]'"):
        search_recipe(Setup(recipe), output=tmp_path)


# ---- The objective and the report ----


@pytest.mark.parametrize(
    ("training", "metric", "expected"),
    [
        ({}, "nll", [0.9, 0.7, 0.8]),  # the last evaluation is the one that counts
        ({"load_best_model_at_end": True, "metric_for_best_model": "accuracy"}, "nll", [0.9, 0.9, 0.8]),
        ({"load_best_model_at_end": True, "metric_for_best_model": "eval_nll", "greater_is_better": False},
         "accuracy", [0.5, 0.4, 0.4]),
    ],
)  # fmt: skip
def test_the_objective_is_that_of_the_student_a_run_would_keep(training, metric, expected, tmp_path):
    always = {
        "output_dir": str(tmp_path),
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "use_cpu": True,
    }
    objective = searching._Objective(Setup(Recipe(**BASE, training={**always, **training})), metric)
    evaluations = [(0.9, 0.5), (0.7, 0.4), (0.8, 0.6)]
    found = [objective({"eval_nll": nll, "eval_accuracy": accuracy}) for nll, accuracy in evaluations]
    assert found == expected
    objective.begin()
    assert objective({"eval_nll": 3.0, "eval_accuracy": 0.1}) == {"nll": 3.0, "accuracy": 0.1}[metric]


def test_a_diverged_trial_is_the_worst(tmp_path):
    args = {"output_dir": str(tmp_path), "use_cpu": True}
    for metric, worst in (("nll", math.inf), ("accuracy", -math.inf)):
        objective = searching._Objective(Setup(Recipe(**BASE, training=args)), metric)
        assert objective({f"eval_{metric}": math.nan}) == worst


def test_a_report_of_more_is_better_with_a_diverged_trial(tmp_path):
    knobs = (Knob("temperature", 1, 8), Knob("fusion", choices=("auto", "log_pool(weights=[1, 2])")))
    trials = [
        Trial(0, {"temperature": 2.0, "fusion": "auto"}, 0.8, 61.2),
        Trial(2, {"temperature": 7.6543, "fusion": "log_pool(weights=[1, 2])"}, 0.9, 59.0),
        Trial(3, {"temperature": 1.0, "fusion": "auto"}, -math.inf, 2.0),
    ]
    report = SearchReport("accuracy", False, knobs, tuple(trials), own=2, on_report=True)
    lines = str(report).splitlines()
    assert [cell.strip() for cell in lines[3].split("|")][1:-1] == ["2 *", "0.9000", "7.65", "log_pool(weights=[1, 2])", "59"]  # fmt: skip
    assert "| diverged | 1 " in lines[4]
    assert "accuracy 0.9000 on the validation rows, the recipe's own values." in str(report)
    assert "the final report is made on these rows too" in str(report)
    report.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["search.md", "search.png"]


def test_ticks_of_the_figure_do_not_touch():
    knobs = (
        Knob("temperature", 1, 8),
        Knob("learning_rate", 3e-4, 4e-3, log=True),
        Knob("task_weight", 1e-3, 1, log=True),
        Knob(
            "fusion",
            choices=("auto", "linear_pool", "log_pool", "pool_then_temper", "log_pool(weights=[1, 2, 3])"),
        ),
    )
    values = {"temperature": 2.0, "learning_rate": 1e-3, "task_weight": 0.3, "fusion": "auto"}
    figure = draw_search(SearchReport("nll", True, knobs, (Trial(0, values, 0.5, 1.0),)))
    figure.draw_without_rendering()
    for axes in figure.axes[1:4]:
        labels = [label for label in axes.get_xticklabels(which="both") if label.get_text()]
        boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
        assert len(boxes) >= 2
        assert all(one.x1 < other.x0 for one, other in zip(boxes, boxes[1:], strict=False))
