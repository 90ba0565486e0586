"""Our metrics against values computed by hand, scikit-learn, and a slow plain-Python reference."""

from __future__ import annotations

import math
import socket

import datasets
import evaluate
import numpy as np
import pytest
import sklearn.metrics

from hf_distill.errors import ConfigurationError, DataError
from hf_distill.evaluation.metrics import (
    METRICS,
    brier_score,
    compute_metric,
    expected_calibration_error,
    kl_to_ensemble,
    load_metric,
    negative_log_likelihood,
)
from hf_distill.tasks import family_of, fits

CLASSES = {"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}
INF = math.inf


def log(*rows: list[float]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array(rows, dtype=np.float64))


def random_log_probs(rows: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.log(np.random.default_rng(seed).dirichlet(np.ones(classes), rows))


def ece_row_by_row(log_probs: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """The definition, one row and one bin at a time."""
    rows = [
        (max(math.exp(x) for x in row), int(np.argmax(row)) == y)
        for row, y in zip(log_probs, labels, strict=True)
    ]
    total = 0.0
    for b in range(bins):
        inside = [(conf, hit) for conf, hit in rows if b / bins < conf <= (b + 1) / bins]
        if inside:
            accuracy = sum(hit for _, hit in inside) / len(inside)
            confidence = sum(conf for conf, _ in inside) / len(inside)
            total += len(inside) / len(rows) * abs(accuracy - confidence)
    return total


# Four rows, classes 0, 1, 2, 2 against predictions 0, 1, 2, 0. Per class (hits, predicted, true): (1, 2, 1),
# (1, 1, 1), (1, 1, 2). MCC: (hits * rows - sum of predicted * true) = 3*4 - (2*1 + 1*1 + 1*2) = 7, over the
# root of (16 - (4+1+1)) * (16 - (1+1+4)), which is 10.
HARD = {
    "accuracy": 3 / 4,
    "precision": (1 / 2 + 1 + 1) / 3,
    "recall": (1 + 1 + 1 / 2) / 3,
    "f1": (2 / 3 + 1 + 2 / 3) / 3,
    "matthews_correlation": 7 / 10,
    "agreement": 3 / 4,
}


@pytest.mark.parametrize("name", HARD)
def test_hard_metric_has_the_value_computed_by_hand(name):
    result = METRICS[name]().compute(predictions=[0, 1, 2, 0], references=[0, 1, 2, 2])
    assert result == {name: pytest.approx(HARD[name], abs=1e-12)}


SOFT_ROWS = log([0.3, 0.7], [0.6, 0.4])
SOFT_LABELS = np.array([1, 1])
SOFT = {
    "nll": -(math.log(0.7) + math.log(0.4)) / 2,
    "brier": ((0.3**2 + 0.3**2) + (0.6**2 + 0.6**2)) / 2,
    "ece": (abs(1 - 0.7) + abs(0 - 0.6))
    / 2,  # 0.7 lies in (10/15, 11/15], 0.6 in (8/15, 9/15] or its neighbour
}


@pytest.mark.parametrize("name", SOFT)
def test_soft_metric_has_the_value_computed_by_hand(name):
    result = METRICS[name]().compute(predictions=SOFT_ROWS, references=SOFT_LABELS)
    assert result == {name: pytest.approx(SOFT[name], abs=1e-12)}


def test_kl_to_ensemble_is_the_worked_example_in_the_direction_ensemble_to_system():
    system, ensemble = log([0.3, 0.7]), log([0.2, 0.8])
    assert kl_to_ensemble(system, ensemble) == pytest.approx(0.025732, abs=1e-6)
    assert kl_to_ensemble(ensemble, system) == pytest.approx(0.028168, abs=1e-6)
    result = METRICS["kl_to_ensemble"]().compute(predictions=system, references=ensemble)
    assert result == {"kl_to_ensemble": pytest.approx(0.025732, abs=1e-6)}


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_averaged_metrics_equal_scikit_learn(average):
    random = np.random.default_rng(1)
    predictions, references = random.integers(0, 5, 200), random.integers(0, 5, 200)
    for name in ("f1", "precision", "recall"):
        expected = getattr(sklearn.metrics, f"{name}_score")(references, predictions, average=average)
        chosen = METRICS[name](average=average).compute(predictions=predictions, references=references)
        asked = METRICS[name]().compute(predictions=predictions, references=references, average=average)
        assert chosen == asked == {name: pytest.approx(expected)}


@pytest.mark.filterwarnings("error")
def test_a_class_that_is_never_predicted_scores_zero():
    rows = {"predictions": [0, 0], "references": [0, 1]}
    assert METRICS["precision"]().compute(**rows) == {"precision": (1 / 2 + 0) / 2}
    assert METRICS["f1"]().compute(**rows) == {"f1": pytest.approx((2 / 3 + 0) / 2)}
    assert METRICS["matthews_correlation"]().compute(**rows) == {"matthews_correlation": 0.0}


def test_soft_metrics_equal_scikit_learn():
    log_probs, labels = random_log_probs(300, 4), np.random.default_rng(2).integers(0, 4, 300)
    assert negative_log_likelihood(log_probs, labels) == pytest.approx(
        sklearn.metrics.log_loss(labels, np.exp(log_probs), labels=range(4))
    )
    binary, binary_labels = random_log_probs(300, 2), labels % 2
    assert brier_score(binary, binary_labels) == pytest.approx(
        2 * sklearn.metrics.brier_score_loss(binary_labels, np.exp(binary[:, 1]))
    )


@pytest.mark.parametrize(("classes", "bins"), [(2, 15), (5, 15), (3, 4)])
def test_ece_equals_the_definition_row_by_row(classes, bins):
    log_probs = random_log_probs(400, classes, seed=classes)
    labels = np.random.default_rng(3).integers(0, classes, 400)
    expected = ece_row_by_row(log_probs, labels, bins)
    assert expected_calibration_error(log_probs, labels, bins=bins) == pytest.approx(expected, abs=1e-12)


def test_ece_bins_are_open_below_and_closed_above():
    # Confidences 0.5 (right) and 0.75 (wrong), powers of two that exp(log(p)) returns exactly. With two bins
    # 0.5 belongs to (0, 0.5]: the gaps 0.5 and 0.75 add up. In [0.5, 1) with 0.75 they would partly cancel.
    log_probs, labels = log([0.5, 0.5], [0.25, 0.75]), np.array([0, 0])
    assert expected_calibration_error(log_probs, labels, bins=2) == pytest.approx((0.5 + 0.75) / 2)
    # A confidence of exactly 1 has a bin too.
    assert expected_calibration_error(log([0.0, 1.0]), np.array([0])) == 1.0


def test_impossible_classes_are_handled():
    certain = log([1.0, 0.0], [0.0, 1.0])
    assert negative_log_likelihood(certain, np.array([0, 1])) == 0.0
    assert negative_log_likelihood(certain, np.array([0, 0])) == INF
    assert brier_score(certain, np.array([0, 0])) == 1.0
    assert kl_to_ensemble(certain, certain) == 0.0  # 0 log 0 = 0, and no NaN from -inf - (-inf)
    assert kl_to_ensemble(log([0.5, 0.5]), log([1.0, 0.0])) == pytest.approx(math.log(2))
    assert kl_to_ensemble(log([1.0, 0.0]), log([0.5, 0.5])) == INF
    # ... also through the Arrow round trip of `compute`
    assert METRICS["nll"]().compute(predictions=certain, references=[0, 0]) == {"nll": INF}


def test_a_diverged_run_shows_as_nan():
    assert math.isnan(negative_log_likelihood(np.full((2, 2), np.nan), np.array([0, 1])))


@pytest.mark.parametrize(
    ("log_probs", "labels", "words"),
    [
        (np.zeros((2, 3)), np.array([0, 1]), "row 0 sum to 3, not 1"),
        (SOFT_ROWS, np.array([0, 2]), "row 1 has label 2"),
        (SOFT_ROWS, np.array([-100, 1]), "row 0 has label -100"),
        (SOFT_ROWS, np.array([1]), "2 rows of log_probs"),
        (np.zeros((0, 2)), np.zeros(0, int), "at least one each"),
        (np.zeros(3), np.array([0, 1, 1]), "shape (3,)"),
    ],
)
@pytest.mark.parametrize("function", [negative_log_likelihood, brier_score, expected_calibration_error])
def test_what_does_not_fit_is_refused_with_its_value(function, log_probs, labels, words):
    with pytest.raises(DataError) as caught:
        function(log_probs, labels)
    assert words in str(caught.value)


def test_kl_refuses_other_rows():
    with pytest.raises(DataError, match=r"\(2, 2\).*\(1, 2\)"):
        kl_to_ensemble(SOFT_ROWS, SOFT_ROWS[:1])


@pytest.mark.parametrize("name", METRICS)
def test_the_table_names_each_class_by_its_result(name):
    module = load_metric(name)
    assert type(module) is METRICS[name]
    assert module.name == name
    assert module.references_from in ("labels", "ensemble")
    answers, ensemble, labels, task = (
        SOFT_ROWS,
        log([0.2, 0.8], [0.5, 0.5]),
        SOFT_LABELS,
        "text-classification",
    )
    if not fits(module, family_of(task)):
        task = "regression" if fits(module, family_of("regression")) else "multi-label-classification"
        labels = np.array([[0.0, 1.0], [1.0, 0.0]])
    result = compute_metric(
        module, log_probs=answers, labels=labels, ensemble_log_probs=ensemble, family=family_of(task)
    )
    assert list(result) == [name]
    assert type(result[name]) is float


def test_our_names_never_touch_the_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(evaluate, "load", refuse)
    for name in METRICS:
        load_metric(name)


def test_evaluate_combines_the_hard_ones():
    combined = evaluate.combine([METRICS["accuracy"](), METRICS["f1"](), METRICS["matthews_correlation"]()])
    result = combined.compute(predictions=[0, 1, 2, 0], references=[0, 1, 2, 2])
    assert result == {name: pytest.approx(HARD[name]) for name in ("accuracy", "f1", "matthews_correlation")}


def test_rows_can_be_added_in_batches():
    module = METRICS["nll"]()
    module.add_batch(predictions=SOFT_ROWS[:1], references=SOFT_LABELS[:1])
    module.add_batch(predictions=SOFT_ROWS[1:], references=SOFT_LABELS[1:])
    assert module.compute() == {"nll": pytest.approx(SOFT["nll"])}


class TestLoadMetric:
    def test_a_module_is_returned_as_it_is(self):
        module = METRICS["accuracy"]()
        assert load_metric(module) is module

    def test_an_option_is_passed_on(self):
        assert load_metric({"use": "f1", "average": "micro"}).average == "micro"

    def test_a_path_names_a_class_of_the_users(self):
        assert type(load_metric("hf_distill.evaluation.metrics:Brier")) is METRICS["brier"]

    def test_a_path_to_something_else_is_refused(self):
        with pytest.raises(ConfigurationError, match="expected an evaluate.EvaluationModule"):
            load_metric("fractions:Fraction")

    def test_a_local_script_goes_through_evaluate(self, tmp_path):
        script = tmp_path / "always_half.py"
        script.write_text(
            "import datasets\n"
            "import evaluate\n\n\n"
            "class AlwaysHalf(evaluate.Metric):\n"
            "    def _info(self):\n"
            "        whole = datasets.Value('int32')\n"
            "        features = datasets.Features(predictions=whole, references=whole)\n"
            "        return evaluate.MetricInfo(description='', citation='', features=features)\n\n"
            "    def _compute(self, predictions, references):\n"
            "        return {'half': 0.5, 'rows': len(predictions)}\n"
        )
        module = load_metric(str(script))
        result = compute_metric(module, log_probs=SOFT_ROWS, labels=SOFT_LABELS)
        assert result == {"half": 0.5, "rows": 2.0}

    def test_an_unknown_name_says_what_there_is(self):
        with pytest.raises(ConfigurationError) as caught:
            load_metric("acuracy")
        message = str(caught.value)
        assert "'acuracy'" in message
        assert "did you mean 'accuracy'" in message
        assert "Hub could not be reached" in message
        assert all(name in message for name in METRICS)


class Recorder(evaluate.Metric):
    """A user's own metric: declares what it is told to and returns what it was given."""

    def __init__(self, features):
        self._features = features
        super().__init__(keep_in_memory=True)

    def _info(self):
        return evaluate.MetricInfo(description="", citation="", features=self._features)

    def _compute(self, **columns):
        self.seen = columns
        return {"rows": len(columns["references"]), "one": 1}


SCALAR, VECTOR = datasets.Value("float32"), datasets.Sequence(datasets.Value("float32"))
REFERENCES = datasets.Value("int32")


class TestComputeMetric:
    log_probs = log([0.25, 0.75], [0.5, 0.5], [0.75, 0.25])
    labels = np.array([1, -100, 1])
    ensemble = log([0.75, 0.25], [0.25, 0.75], [0.75, 0.25])

    def fed(self, features):
        module = Recorder(features)
        result = compute_metric(module, log_probs=self.log_probs, labels=self.labels)
        assert result == {"rows": 2.0, "one": 1.0}  # the row without a label is left out
        assert module.seen["references"] == [1, 1]
        return next(value for key, value in module.seen.items() if key != "references")

    def test_integers_get_the_predicted_class(self):
        assert self.fed(datasets.Features(CLASSES)) == [1, 0]

    def test_the_first_alternative_that_fits_is_fed(self):
        nested = {name: datasets.Sequence(datasets.Value("int32")) for name in CLASSES}
        assert self.fed([datasets.Features(nested), datasets.Features(CLASSES)]) == [1, 0]

    def test_sequences_get_log_probabilities(self):
        rows = self.fed(datasets.Features(predictions=VECTOR, references=REFERENCES))
        np.testing.assert_allclose(rows, self.log_probs[[0, 2]], rtol=1e-6)

    def test_scores_get_probabilities(self):
        rows = self.fed(datasets.Features(prediction_scores=VECTOR, references=REFERENCES))
        np.testing.assert_allclose(rows, [[0.25, 0.75], [0.75, 0.25]])

    def test_one_score_gets_the_probability_of_class_1(self):
        features = datasets.Features(prediction_scores=SCALAR, references=REFERENCES)
        np.testing.assert_allclose(self.fed(features), [0.75, 0.25])
        with pytest.raises(ConfigurationError, match="needs two classes; found 3"):
            compute_metric(Recorder(features), log_probs=log([0.2, 0.3, 0.5]), labels=np.array([1]))

    def test_other_features_are_refused(self):
        text = datasets.Features(predictions=datasets.Value("string"), references=datasets.Value("string"))
        with pytest.raises(ConfigurationError, match="we can feed integer predictions"):
            compute_metric(Recorder(text), log_probs=self.log_probs, labels=self.labels)

    def test_values_that_are_no_numbers_are_refused(self):
        class PerClass(Recorder):
            def _compute(self, **columns):
                return {"f1": np.array([0.5, 0.5])}

        with pytest.raises(ConfigurationError, match="one number per key"):
            compute_metric(PerClass(datasets.Features(CLASSES)), log_probs=self.log_probs, labels=self.labels)

    def test_the_ensemble_is_compared_on_all_rows(self):
        values = {
            "log_probs": self.log_probs,
            "labels": np.full(3, -100),
            "ensemble_log_probs": self.ensemble,
        }
        assert compute_metric(load_metric("agreement"), **values) == {"agreement": 1 / 3}
        expected = (0.5 * math.log(3) + (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) + 0) / 3
        assert compute_metric(load_metric("kl_to_ensemble"), **values) == {
            "kl_to_ensemble": pytest.approx(expected)
        }

    def test_what_is_missing_is_named(self):
        with pytest.raises(DataError, match="'agreement' compares with the ensemble"):
            compute_metric(load_metric("agreement"), log_probs=self.log_probs, labels=self.labels)
        with pytest.raises(DataError, match="none of the 3 rows has one"):
            compute_metric(load_metric("nll"), log_probs=self.log_probs, labels=np.full(3, -100))

    def test_our_own_agree_with_their_public_compute(self):
        log_probs, labels = random_log_probs(50, 3), np.random.default_rng(5).integers(0, 3, 50)
        for name in ("accuracy", "nll", "ece"):
            module = load_metric(name)
            predictions = log_probs.argmax(axis=1) if name == "accuracy" else log_probs
            public = module.compute(predictions=predictions, references=labels)
            assert compute_metric(module, log_probs=log_probs, labels=labels) == public
