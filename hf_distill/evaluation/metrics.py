"""Metrics that need no network: numpy mathematics, and thin `evaluate.Metric` classes over it.

Shapes: N rows, C classes. Predictions of the soft metrics are log-probabilities (N, C) at temperature 1,
natural logarithm, `-inf` allowed; hard metrics take class indices (N,).

`import evaluate` costs seconds: import this module inside what needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, precision_score, recall_score

from ..errors import ConfigurationError, DataError
from ..fusion.alignment import labelled as with_label
from ..lookup import build, suggest
from ..tasks import family_of, fits
from ..tasks.family import Family
from ..tasks.row_scores import binned, brier_rows, kl_rows, nll_rows

# How far a row's probabilities may sum from 1: float32 log-softmax over hundreds of classes stays far below.
_SUM_TOLERANCE = 1e-3

# float64, because float32 log-probabilities are exact in it.
_LOG_PROBS = datasets.Sequence(datasets.Value("float64"))


def negative_log_likelihood(log_probs: np.ndarray, labels: np.ndarray) -> float:
    """Average -ln p(label) over the rows: what cross-entropy measures, a proper score of the probabilities.

    Args:
        log_probs: (N, C) log-probabilities.
        labels: (N,) class indices, 0 … C-1.

    Returns:
        Nats per row; `inf` as soon as one row's label was given probability 0.

    Raises:
        DataError: Shapes or label values that do not fit, no rows, rows that are not distributions.

    Example:
        >>> import numpy as np
        >>> from hf_distill.evaluation.metrics import negative_log_likelihood
        >>> round(negative_log_likelihood(np.log([[0.3, 0.7], [0.5, 0.5]]), np.array([1, 0])), 6)
        0.524911
    """
    log_probs, labels = _checked(log_probs, labels)
    return float(nll_rows(log_probs, labels).mean())


def brier_score(log_probs: np.ndarray, labels: np.ndarray) -> float:
    """Average Σ_c (p_c - [c is the label])², the sum over all classes, over the rows.

    A proper score like the NLL, but bounded: 0 is perfect, 2 is certain and wrong. For two classes it is
    twice the binary Brier score that scikit-learn and `evaluate` print.

    Args:
        log_probs: (N, C) log-probabilities.
        labels: (N,) class indices, 0 … C-1.

    Returns:
        A number in [0, 2].

    Raises:
        DataError: Shapes or label values that do not fit, no rows, rows that are not distributions.

    Reference:
        Brier 1950, Verification of forecasts expressed in terms of probability.

    Example:
        >>> import numpy as np
        >>> from hf_distill.evaluation.metrics import brier_score
        >>> round(brier_score(np.log([[0.3, 0.7]]), np.array([1])), 6)
        0.18
    """
    log_probs, labels = _checked(log_probs, labels)
    return float(brier_rows(log_probs, labels).mean())


def expected_calibration_error(log_probs: np.ndarray, labels: np.ndarray, *, bins: int = 15) -> float:
    """Average over equal bins how far the confidence of the predicted class is from its accuracy.

    Rows are put by confidence into bins (lo, hi]; each bin with rows adds (its share of rows) times
    |accuracy - mean confidence|. Not a proper score: predicting the class frequencies everywhere scores 0.

    Args:
        log_probs: (N, C) log-probabilities.
        labels: (N,) class indices, 0 … C-1.
        bins: Number of equal bins on (0, 1].

    Returns:
        A number in [0, 1].

    Raises:
        DataError: Shapes or label values that do not fit, no rows, rows that are not distributions.

    Reference:
        Guo et al. 2017, On calibration of modern neural networks, equation 3.

    Example:
        >>> import numpy as np
        >>> from hf_distill.evaluation.metrics import expected_calibration_error
        >>> round(expected_calibration_error(np.log([[0.3, 0.7], [0.3, 0.7]]), np.array([1, 0])), 6)
        0.2
    """
    log_probs, labels = _checked(log_probs, labels)
    confidence, correct, index = binned(log_probs, labels, bins=bins)
    return float(np.abs(np.bincount(index, weights=correct - confidence, minlength=bins)).sum() / len(labels))


def kl_to_ensemble(log_probs: np.ndarray, ensemble_log_probs: np.ndarray) -> float:
    """Average KL(ensemble‖system) over the rows: what is lost by replacing the ensemble with the system.

    The direction is that of `forward_kl`, at temperature 1; 0·ln 0 = 0.

    Args:
        log_probs: (N, C) the system's log-probabilities.
        ensemble_log_probs: (N, C) the ensemble's.

    Returns:
        Nats per row; `inf` as soon as the system rules out a class that the ensemble deems possible.

    Raises:
        DataError: Shapes that do not fit, no rows, rows that are not distributions.

    Example:
        >>> import numpy as np
        >>> from hf_distill.evaluation.metrics import kl_to_ensemble
        >>> round(kl_to_ensemble(np.log([[0.3, 0.7]]), np.log([[0.2, 0.8]])), 6)
        0.025732
    """
    log_probs = _distributions(log_probs, "log_probs")
    ensemble = _distributions(ensemble_log_probs, "ensemble_log_probs")
    if log_probs.shape != ensemble.shape:
        raise DataError(
            f"log_probs have shape {log_probs.shape} and ensemble_log_probs {ensemble.shape}; "
            "both hold the same rows over the same classes in the same order"
        )
    return float(kl_rows(ensemble, log_probs).mean())


class _OfflineMetric(evaluate.Metric):
    """What the classes below share; `name` is also the key of the result."""

    columns = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
    references_from = "labels"
    families: tuple[str, ...] = ("categorical",)
    """Of which predictions it says something."""
    score: Callable[[Any, Any], float]
    """Of references and predictions."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation="",
            inputs_description="",
            features=datasets.Features(self.columns),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {self.name: float(self.score(references, predictions))}


class _SoftMetric(_OfflineMetric):
    columns = {"predictions": _LOG_PROBS, "references": datasets.Value("int64")}


class _AveragedMetric(_OfflineMetric):
    families = ("categorical", "bernoulli")

    def __init__(self, average: str = "macro", **options: Any) -> None:
        super().__init__(**options)
        self.average = average

    def _compute(self, predictions: Any, references: Any, average: str | None = None) -> dict[str, float]:
        return {
            self.name: float(
                self.score(references, predictions, average=average or self.average, zero_division=0)
            )
        }


class Accuracy(_OfflineMetric):
    """Share of rows whose predicted class is the label; of several labels, of rows all of whose labels are right."""

    families = ("categorical", "bernoulli")
    name = "accuracy"
    score = staticmethod(accuracy_score)


class F1(_AveragedMetric):
    """F1, by default the mean over classes (macro).

    The classes are those that occur as a label or as a prediction; one without any hit scores 0.

    Args:
        average: "macro", "micro", "weighted" or, for labels 0 and 1, "binary"; also an argument of `compute`.
    """

    name = "f1"
    score = staticmethod(f1_score)


class Precision(_AveragedMetric):
    """Precision, averaged as in `F1`; a class that is never predicted scores 0."""

    name = "precision"
    score = staticmethod(precision_score)


class Recall(_AveragedMetric):
    """Recall, averaged as in `F1`: the default is balanced accuracy where every class has rows."""

    name = "recall"
    score = staticmethod(recall_score)


class MatthewsCorrelation(_OfflineMetric):
    """Correlation of predicted and true class, -1 to 1, for any number of classes; 0 if one is constant."""

    name = "matthews_correlation"
    score = staticmethod(matthews_corrcoef)


class NegativeLogLikelihood(_SoftMetric):
    """`negative_log_likelihood` of log-probabilities; `inf` for a label that was given probability 0."""

    name = "nll"
    score = staticmethod(lambda labels, log_probs: negative_log_likelihood(log_probs, labels))


class Brier(_SoftMetric):
    """`brier_score` of log-probabilities: squared error summed over the classes, 0 to 2."""

    name = "brier"
    score = staticmethod(lambda labels, log_probs: brier_score(log_probs, labels))


class CalibrationError(_SoftMetric):
    """`expected_calibration_error` of log-probabilities: predicted class, 15 equal bins (lo, hi]."""

    name = "ece"
    score = staticmethod(lambda labels, log_probs: expected_calibration_error(log_probs, labels))


class Agreement(_OfflineMetric):
    """Share of rows where the system predicts the class that the ensemble predicts, right or wrong."""

    name = "agreement"
    references_from = "ensemble"
    score = staticmethod(accuracy_score)


class KLToEnsemble(_OfflineMetric):
    """`kl_to_ensemble` of log-probabilities; the references are the ensemble's log-probabilities."""

    name = "kl_to_ensemble"
    columns = {"predictions": _LOG_PROBS, "references": _LOG_PROBS}
    references_from = "ensemble"
    score = staticmethod(lambda ensemble, log_probs: kl_to_ensemble(log_probs, ensemble))


class MicroF1(_OfflineMetric):
    """F1 of all (row, label) pairs together: frequent labels count more."""

    name = "f1_micro"
    families = ("categorical", "bernoulli")
    score = staticmethod(lambda truth, answers: f1_score(truth, answers, average="micro", zero_division=0))


class _LabelMetric(_OfflineMetric):
    columns = {"predictions": _LOG_PROBS, "references": _LOG_PROBS}
    families = ("bernoulli",)


class LabelNLL(_LabelMetric):
    """−ln p of what each label is, a mean over rows and labels, in nats: the binary cross-entropy."""

    name = "label_nll"
    score = staticmethod(
        lambda truth, odds: np.logaddexp(0.0, np.where(np.asarray(truth) == 1, -odds, odds)).mean()
    )


class LabelBrier(_LabelMetric):
    """(p − label)², a mean over rows and labels."""

    name = "label_brier"
    score = staticmethod(lambda truth, odds: np.square(1 / (1 + np.exp(-odds)) - truth).mean())


class LabelAgreement(_LabelMetric):
    """Share of (row, label) pairs that are answered as the ensemble answers them, right or wrong."""

    name = "label_agreement"
    references_from = "ensemble"
    score = staticmethod(lambda ensemble, odds: ((ensemble > 0) == (odds > 0)).mean())


class _NumberMetric(_OfflineMetric):
    columns = {"predictions": _LOG_PROBS, "references": _LOG_PROBS}
    families = ("gaussian",)


def _correlation(first: Any, second: Any) -> float:
    """Pearson's, a mean over the columns; 0 where one is constant."""
    a, b = (np.asarray(x, np.float64) - np.mean(x, 0) for x in (first, second))
    scale = np.sqrt(np.square(a).sum(0) * np.square(b).sum(0))
    return float(np.divide((a * b).sum(0), scale, out=np.zeros_like(scale), where=scale > 0).mean())


def _ranks(values: Any) -> np.ndarray:
    """(N, C) ranks in each column from 1 on, of equal ones their mean."""
    ranked = []
    for column in np.asarray(values, np.float64).T:
        _, place, counts = np.unique(column, return_inverse=True, return_counts=True)
        ranked.append((np.cumsum(counts) - (counts - 1) / 2)[place])
    return np.stack(ranked, 1)


class Pearson(_NumberMetric):
    """Pearson's correlation with the label, a mean over the outputs; 0 where one is constant."""

    name = "pearson"
    score = staticmethod(_correlation)


class Spearman(_NumberMetric):
    """Spearman's rank correlation with the label, ties by their mean rank, a mean over the outputs."""

    name = "spearman"
    score = staticmethod(lambda truth, said: _correlation(_ranks(truth), _ranks(said)))


class SquaredError(_NumberMetric):
    """Mean squared error, over rows and outputs."""

    name = "mse"
    score = staticmethod(lambda truth, said: np.square(np.asarray(said) - truth).mean())


class AbsoluteError(_NumberMetric):
    """Mean absolute error, over rows and outputs."""

    name = "mae"
    score = staticmethod(lambda truth, said: np.abs(np.asarray(said) - truth).mean())


class CorrelationWithEnsemble(_NumberMetric):
    """Pearson's correlation with what the ensemble says, a mean over the outputs."""

    name = "correlation_with_ensemble"
    references_from = "ensemble"
    score = staticmethod(_correlation)


METRICS: dict[str, type[evaluate.Metric]] = {
    "accuracy": Accuracy,
    "f1": F1,
    "precision": Precision,
    "recall": Recall,
    "matthews_correlation": MatthewsCorrelation,
    "nll": NegativeLogLikelihood,
    "brier": Brier,
    "ece": CalibrationError,
    "agreement": Agreement,
    "kl_to_ensemble": KLToEnsemble,
    "f1_micro": MicroF1,
    "label_nll": LabelNLL,
    "label_brier": LabelBrier,
    "label_agreement": LabelAgreement,
    "pearson": Pearson,
    "spearman": Spearman,
    "mse": SquaredError,
    "mae": AbsoluteError,
    "correlation_with_ensemble": CorrelationWithEnsemble,
}

BETTER_WHEN_LOWER = frozenset(
    {"nll", "brier", "ece", "kl_to_ensemble", "label_nll", "label_brier", "mse", "mae"}
)
"""Those of `METRICS` of which less is better."""


def load_metric(spec: str | Mapping[str, Any] | evaluate.EvaluationModule) -> evaluate.EvaluationModule:
    """Build the evaluation module that `spec` describes.

    A name in `METRICS` always means ours, so a result never depends on whether the Hub could be reached.

    Args:
        spec: A name in `METRICS`; a path to the user's own class, `"pkg.mod:Name"`; a mapping
            `{"use": either of them, **options}`; any other string goes to `evaluate.load` (a Hub id or a
            local script); an `evaluate.EvaluationModule` is returned as it is.

    Raises:
        ConfigurationError: Nothing of that name here, and `evaluate.load` found none either.

    Example:
        >>> from hf_distill.evaluation.metrics import load_metric
        >>> load_metric({"use": "f1", "average": "weighted"}).compute(predictions=[0, 1], references=[0, 1])
        {'f1': 1.0}
    """
    if isinstance(spec, str) and spec not in METRICS and ":" not in spec:
        try:
            return evaluate.load(spec)
        # evaluate.load raises whatever went wrong below it (FileNotFoundError, ImportError, requests' and the
        # Hub client's errors); the cause stays attached.
        except Exception as error:
            raise ConfigurationError(
                f"there is no metric named {spec!r} here{suggest(spec, METRICS)}, and evaluate.load failed: "
                f"the Hub could not be reached or has no such module ({error}); "
                f"available without the Hub: {', '.join(METRICS)}"
            ) from error
    module = build(spec, METRICS, kind="metric")
    if not isinstance(module, evaluate.EvaluationModule):
        raise ConfigurationError(
            f"metric {spec!r} is a {type(module).__name__}; expected an evaluate.EvaluationModule "
            "(a class derived from evaluate.Metric)"
        )
    return module


def unknown_name(spec: Any) -> str | None:
    """Say what is wrong with the name of a metric, without importing or fetching anything; None where nothing is.

    What has a slash may be a module of the Hub or a script, what has a colon one's own class: neither is looked at.

    Example:
        >>> unknown_name("accuracy"), unknown_name("evaluate-metric/exact_match"), unknown_name("my_pkg.mod:Own")
        (None, None, None)
    """
    if not isinstance(spec, str) or spec in METRICS or any(sign in spec for sign in ":/"):
        return None
    return (
        f"there is no metric named {spec!r}{suggest(spec, METRICS)}; known: {', '.join(METRICS)}; a module of the Hub is "
        f"written evaluate-metric/{spec}, one's own pkg.mod:Name"
    )


def references_of(module: evaluate.EvaluationModule) -> str:
    """What a module compares with: ``labels``, or where it says so the ``ensemble``."""
    return getattr(module, "references_from", "labels")


def compute_metric(
    module: evaluate.EvaluationModule,
    *,
    log_probs: np.ndarray,
    labels: np.ndarray,
    ensemble_log_probs: np.ndarray | None = None,
    family: Family | None = None,
) -> dict[str, float]:
    """Compute one system's values of one evaluation module, fed as its declared features ask.

    Integer `predictions` get the most probable class, float sequences the log-probabilities,
    `prediction_scores` the probabilities (those of class 1 where one number per row is declared).
    References are the labels, of the labelled rows only, unless the module says
    `references_from = "ensemble"`: then they are the ensemble's predictions or log-probabilities on all rows.

    Args:
        module: As `load_metric` returns it.
        log_probs: (N, C) the system's log-probabilities at temperature 1.
        labels: (N,) class indices; -100 where a row has none.
        ensemble_log_probs: (N, C), needed by the modules that compare with the ensemble.
        family: Says what an answer is, and how probable; None: one class of several.

    Returns:
        The module's own keys and Python floats.

    Raises:
        ConfigurationError: Features that we cannot feed, or values that are no numbers.
        DataError: No labelled row, or no ensemble, where the module needs it.

    Example:
        >>> import numpy as np
        >>> from hf_distill.evaluation.metrics import compute_metric, load_metric
        >>> compute_metric(load_metric("accuracy"), log_probs=np.log([[0.3, 0.7]]), labels=np.array([1]))
        {'accuracy': 1.0}
    """
    log_probs, family = np.asarray(log_probs, dtype=np.float64), family or family_of("text-classification")
    column, form = _wanted(module)
    if not fits(module, family):
        raise ConfigurationError(
            f"The metric {module.name!r} is for predictions of the family {' or '.join(module.families)}, but these are {family.name}: take "
            f"one of {', '.join(name for name, own in METRICS.items() if fits(own, family))}."
        )
    if references_of(module) == "ensemble":
        if ensemble_log_probs is None:
            raise DataError(f"metric {module.name!r} compares with the ensemble; pass ensemble_log_probs")
        ensemble = np.asarray(ensemble_log_probs, dtype=np.float64)
        references = family.predictions(ensemble) if form == "classes" else ensemble
    else:
        labels = np.asarray(labels)
        labelled = with_label(labels)
        if not labelled.any():
            raise DataError(f"metric {module.name!r} needs labels; none of the {len(labels)} rows has one")
        log_probs, references = log_probs[labelled], family.truth(labels[labelled])
    if form == "classes":
        predictions = family.predictions(log_probs)
    elif form == "log_probs":
        predictions = log_probs
    else:
        predictions = family.probabilities(log_probs)
        if form == "score":
            if predictions.shape[1] != 2:
                raise ConfigurationError(
                    f"metric {module.name!r} takes one score per row, which needs two classes; "
                    f"found {predictions.shape[1]}"
                )
            predictions = predictions[:, 1]
    if isinstance(module, _OfflineMetric):
        # `compute` sends the rows through an Arrow file: 0.3 s for 10,000 rows of 150 classes where the
        # mathematics takes 0.3 ms, and a second's wait for a file lock while another process evaluates.
        values = module._compute(predictions=predictions, references=references)
    else:
        values = module.compute(**{column: predictions, "references": references})
    try:
        return {key: float(value) for key, value in values.items()}
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"metric {module.name!r} returned {values!r}; expected one number per key "
            "(a value per class has no place in the table: choose an average)"
        ) from error


def _wanted(module: evaluate.EvaluationModule) -> tuple[str, str]:
    """The predictions' column and its form: "classes", "log_probs", "probs" or "score"."""
    alternatives = module.features if isinstance(module.features, list) else [module.features]
    for features in alternatives:
        for column in ("predictions", "prediction_scores"):
            feature = features.get(column)
            if set(features) != {column, "references"} or feature is None:
                continue
            scalar = isinstance(feature, datasets.Value)
            dtype = feature.dtype if scalar else getattr(getattr(feature, "feature", None), "dtype", "")
            if column == "prediction_scores" and dtype.startswith("float"):
                return column, "score" if scalar else "probs"
            if column == "predictions" and scalar and dtype.startswith(("int", "uint")):
                return column, "classes"
            if column == "predictions" and not scalar and dtype.startswith("float"):
                return column, "log_probs"
    raise ConfigurationError(
        f"metric {module.name!r} declares {module.features}; we can feed integer predictions, sequences of "
        "log-probabilities as predictions, or prediction_scores, each with references"
    )


def _distributions(log_probs: Any, name: str) -> np.ndarray:
    log_probs = np.asarray(log_probs, dtype=np.float64)
    if log_probs.ndim != 2 or log_probs.size == 0:
        raise DataError(f"{name} have shape {log_probs.shape}; expected (rows, classes), at least one each")
    sums = np.exp(log_probs).sum(axis=1)
    # A NaN passes here and comes out as NaN: a diverged run shows in the table instead of ending in an error.
    wrong = np.flatnonzero(np.abs(sums - 1.0) > _SUM_TOLERANCE)
    if wrong.size:
        raise DataError(
            f"{name}: the probabilities of row {wrong[0]} sum to {sums[wrong[0]]:.6g}, not 1; "
            "pass log-probabilities (log_softmax of the logits)"
        )
    return log_probs


def _checked(log_probs: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    log_probs, labels = _distributions(log_probs, "log_probs"), np.asarray(labels)
    if labels.shape != log_probs.shape[:1]:
        raise DataError(f"{len(log_probs)} rows of log_probs but labels of shape {labels.shape}")
    outside = np.flatnonzero((labels < 0) | (labels >= log_probs.shape[1]))
    if outside.size:
        raise DataError(
            f"row {outside[0]} has label {labels[outside[0]]}; expected 0 … {log_probs.shape[1] - 1}"
        )
    return log_probs, labels
