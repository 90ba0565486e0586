"""Between what a user writes of a fusion and the fusion: specifications that are fitted on held-out rows first."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigurationError, DataError
from ..lookup import build, find, named
from .alignment import OutputMap, scales_in_words, scales_of
from .alignment import labelled as with_label
from .families import BernoulliLinearPool, BernoulliLogPool, GaussianPool
from .fitting import held_out_rows, mean_nll, refuse_infinite
from .linear_pool import LinearPool
from .log_pool import LogPool
from .protocol import Fusion
from .table import ALL_FUSIONS

_FEWEST_ROWS = 40
_RIGHT_ON_ALL = 0.995


class HeldOut(NamedTuple):
    """What the teachers say of held-out rows.

    Attributes:
        logits: (K, N, C) float32 on the CPU, in the student's label space.
        labels: (N,) int64, -100 where unknown; or (N, C) numbers, NaN where unknown.
        mask: (K, N, C) bool, True where the teacher has the class; None where all have all.
        example_ids: (N,) int64, see `example_id`.
    """

    logits: Tensor
    labels: Tensor
    mask: Tensor | None
    example_ids: Tensor


class FusionChoice(NamedTuple):
    """A fusion and where it comes from.

    Attributes:
        fusion: The fusion.
        reason: One sentence: which, and why.
        warnings: What speaks against the rows it was fitted on.
        fitted_on: Example ids of the rows whose labels the fusion or a conversion has seen, (n,) int64.
        conversions: How the outputs of teachers of another kind become the student's.
    """

    fusion: Fusion
    reason: str
    warnings: tuple[str, ...] = ()
    fitted_on: Tensor = torch.empty(0, dtype=torch.int64)
    conversions: tuple[OutputMap, ...] = ()


class FusionRule(Protocol):
    """A fusion that is yet to be fitted or chosen on held-out rows."""

    def choose(self, held_out: HeldOut, names: Sequence[str]) -> FusionChoice:
        """Fit on held-out rows.

        Args:
            held_out: The rows.
            names: The teachers' names.

        Raises:
            DataError: The rows do not allow it.
        """
        ...

    def without_rows(self, why: str) -> FusionChoice:
        """What is used where there are no held-out rows.

        Args:
            why: Why there are none, as the end of a sentence.

        Raises:
            ConfigurationError: The rule cannot do without.
        """
        ...


@dataclass(frozen=True)
class AutoFusion:
    """The default: `LogPool` fitted on two thirds of the held-out rows, if it beats the uniform `LinearPool` on the rest.

    The parts are told apart by the rows' content, so the same rows give the same fusion in any order. Without labels,
    or with too few, it is the uniform `LinearPool`; a teacher whose outputs are not finite stops the run here.

    Example:
        >>> AutoFusion().without_rows("there is no validation split").fusion
        LinearPool(weights=None)
    """

    def choose(self, held_out: HeldOut, names: Sequence[str]) -> FusionChoice:
        labelled = with_label(held_out.labels)
        if int(labelled.sum()) < _FEWEST_ROWS:
            return self.without_rows(f"only {int(labelled.sum())} held-out rows have labels")
        # The uniform pool could not bear it either.
        refuse_infinite(held_out.logits, held_out.mask, "The fusion")
        first = held_out.example_ids % 3 != 0
        fit, rest = labelled & first, labelled & ~first
        warnings = tuple(memorised(held_out, names).values())
        try:
            fitted = LogPool.fit(
                held_out.logits[:, fit],
                held_out.labels[fit],
                mask=None if held_out.mask is None else held_out.mask[:, fit],
            )
            rows, labels, mask = held_out_rows(
                held_out.logits[:, rest],
                held_out.labels[rest],
                None if held_out.mask is None else held_out.mask[:, rest],
                "The comparison of fusions",
            )
        except DataError as error:
            return FusionChoice(LinearPool(), f"uniform linear_pool, because {error}".rstrip("."), warnings)
        nll = {
            name: mean_nll(fusion(rows, mask=mask), labels)
            for name, fusion in (("log_pool", fitted), ("linear_pool", LinearPool()))
        }
        compared = (
            f"NLL {nll['log_pool']:.4f} of a log_pool fitted on {int(fit.sum())} held-out rows, "
            f"{nll['linear_pool']:.4f} of the uniform linear_pool, on {len(labels)} others"
        )
        if nll["log_pool"] < nll["linear_pool"]:
            shares = ", ".join(f"{name} {w:.3f}" for name, w in zip(names, fitted.weights, strict=True))
            reason = f"log_pool, because it is better: {compared} (weights {shares}; temperature {fitted.temperatures[0]:.3f})"
            return FusionChoice(fitted, reason, warnings, held_out.example_ids[fit])
        return FusionChoice(
            LinearPool(), f"uniform linear_pool, because it is no worse: {compared}", warnings
        )

    def without_rows(self, why: str) -> FusionChoice:
        return FusionChoice(LinearPool(), f"uniform linear_pool, because {why}")


@dataclass(frozen=True)
class AutoBernoulli:
    """The default for several labels: a fitted `BernoulliLogPool` where it beats the uniform `BernoulliLinearPool`.

    As `AutoFusion`: fitted on two thirds of the held-out rows, compared on the rest by the binary cross-entropy.

    Example:
        >>> AutoBernoulli().without_rows("there is no validation split").fusion
        BernoulliLinearPool(weights=None)
    """

    family: ClassVar[str] = "bernoulli"

    def choose(self, held_out: HeldOut, names: Sequence[str]) -> FusionChoice:
        def loss(fusion: Fusion, logits: Tensor, labels: Tensor, mask: Tensor | None) -> float:
            fused = fusion(logits, mask=mask)
            counts = ((labels == 0) | (labels == 1)) & torch.isfinite(fused)
            return F.binary_cross_entropy_with_logits(fused[counts], labels[counts].to(fused.dtype)).item()

        names_of = ("bernoulli_log_pool", "bernoulli_linear_pool")
        plain = BernoulliLinearPool()
        return _better_of(
            held_out, names, names_of, BernoulliLogPool.fit, plain, loss, "binary cross-entropy"
        )

    def without_rows(self, why: str) -> FusionChoice:
        return FusionChoice(BernoulliLinearPool(), f"uniform bernoulli_linear_pool, because {why}")


@dataclass(frozen=True)
class AutoGaussian:
    """The default for numbers: a `GaussianPool` of fitted scales and inverse held-out squared errors where it beats the mean.

    As `AutoFusion`: fitted on two thirds of the held-out rows, compared on the rest by the squared error. Without such rows
    the teachers are taken to speak on the student's scale.

    Example:
        >>> AutoGaussian().without_rows("there is no validation split").fusion
        GaussianPool(weights=None, scales=None)
    """

    family: ClassVar[str] = "gaussian"

    def choose(self, held_out: HeldOut, names: Sequence[str]) -> FusionChoice:
        def loss(fusion: Fusion, logits: Tensor, labels: Tensor, mask: Tensor | None) -> float:
            return (fusion(logits, mask=mask) - labels).square().nanmean().item()

        def fit(logits: Tensor, labels: Tensor, *, mask: Tensor | None) -> Fusion:
            return GaussianPool.fit(logits, labels, mask=mask, method="inverse_mse", scale=True)

        names_of = ("gaussian_pool with fitted scales", "gaussian_pool")
        return _better_of(held_out, names, names_of, fit, GaussianPool(), loss, "squared error")

    def without_rows(self, why: str) -> FusionChoice:
        return FusionChoice(GaussianPool(), f"uniform gaussian_pool, because {why}")


def _better_of(
    held_out: HeldOut,
    names: Sequence[str],
    called: tuple[str, str],
    fit: Any,
    plain: Fusion,
    loss: Any,
    measure: str,
) -> FusionChoice:
    """What is fitted on two thirds of the labelled rows, if it beats the plain fusion on the rest.

    Args:
        held_out: The rows.
        names: The teachers' names.
        called: What the fitted and the plain fusion are called.
        fit: ``fit(logits, labels, *, mask) -> Fusion``.
        plain: The other.
        loss: ``loss(fusion, logits, labels, mask) -> float``.
        measure: What the loss is called.
    """
    labelled = with_label(held_out.labels)
    if int(labelled.sum()) < _FEWEST_ROWS:
        return FusionChoice(
            plain, f"uniform {called[1]}, because only {int(labelled.sum())} held-out rows have labels"
        )
    refuse_infinite(held_out.logits, held_out.mask, "The fusion")
    first = held_out.example_ids % 3 != 0
    parts = []
    for rows in (labelled & first, labelled & ~first):
        mask = None if held_out.mask is None else held_out.mask[:, rows]
        parts.append((held_out.logits[:, rows], held_out.labels[rows], mask))
    if not len(parts[0][1]) or not len(parts[1][1]):
        return FusionChoice(plain, f"uniform {called[1]}, because the held-out rows make no two parts")
    try:
        fitted = fit(parts[0][0], parts[0][1], mask=parts[0][2])
    except DataError as error:
        return FusionChoice(plain, f"uniform {called[1]}, because {error}".rstrip("."))
    values = [loss(fusion, *parts[1]) for fusion in (fitted, plain)]
    compared = (
        f"{measure} {values[0]:.4f} of a {called[0]} fitted on {len(parts[0][1])} held-out rows, {values[1]:.4f} of the uniform "
        f"{called[1]}, on {len(parts[1][1])} others"
    )
    if not values[0] < values[1]:
        return FusionChoice(plain, f"uniform {called[1]}, because it is no worse: {compared}")
    shares = ", ".join(f"{name} {w:.3f}" for name, w in zip(names, fitted.weights, strict=True))
    scales = scales_of(fitted)
    lines = f"; {scales_in_words(names, scales)}" if scales else ""
    reason = f"{called[0]}, because it is better: {compared} (weights {shares}{lines})"
    return FusionChoice(fitted, reason, (), held_out.example_ids[labelled & first])


@dataclass(frozen=True)
class FitFusion:
    """A class of fusions to be fitted on held-out rows: ``{use: log_pool, fit: true}`` in a recipe.

    Args:
        rule: A class with a classmethod ``fit(logits, labels, *, mask, **options)``.
        options: For ``fit``.

    Example:
        >>> logits = torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(0))
        >>> rows = HeldOut(logits, logits[1].argmax(-1), None, torch.arange(64))
        >>> FitFusion(LogPool).choose(rows, ["first", "second"]).fusion.weights[1] > 0.9
        True
    """

    rule: type
    options: Mapping[str, Any] = field(default_factory=dict)

    def choose(self, held_out: HeldOut, names: Sequence[str]) -> FusionChoice:
        try:
            fusion = self.rule.fit(held_out.logits, held_out.labels, mask=held_out.mask, **self.options)
        except (ConfigurationError, DataError):
            raise
        except (TypeError, ValueError) as error:
            if not self.options:
                raise
            raise ConfigurationError(
                f"{self.rule.__name__} cannot be fitted with {dict(self.options)}: {error}"
            ) from error
        labelled = with_label(held_out.labels)
        shares = getattr(fusion, "weights", None)
        scales = scales_of(fusion)
        lines = f"; {scales_in_words(names, scales)}" if scales else ""
        weights = (
            " (weights " + ", ".join(f"{n} {w:.3f}" for n, w in zip(names, shares, strict=True)) + f"{lines})"
            if shares
            else ""
        )
        reason = f"{named(fusion, ALL_FUSIONS)}, fitted on {int(labelled.sum())} held-out rows as asked for{weights}"
        return FusionChoice(
            fusion, reason, tuple(memorised(held_out, names).values()), held_out.example_ids[labelled]
        )

    def without_rows(self, why: str) -> FusionChoice:
        raise ConfigurationError(
            f"The fusion {self.rule.__name__} is to be fitted on held-out rows with labels, but {why}: give some, or a "
            "fusion that needs none."
        )


def memorised(held_out: HeldOut, names: Sequence[str]) -> dict[str, str]:
    """A sentence for each teacher, by name, that was probably trained on the held-out rows: it is right on all of them."""
    labelled = with_label(held_out.labels)
    sentences: dict[str, str] = {}
    if (
        held_out.labels.ndim > 1
    ):  # of several labels, and of numbers, nobody is right on all rows by memory alone
        return sentences
    for name, logits in zip(names, held_out.logits[:, labelled], strict=True):
        share = (logits.argmax(-1) == held_out.labels[labelled]).double().mean().item()
        if share >= _RIGHT_ON_ALL:
            sentences[name] = (
                f"Teacher {name!r} is right on {share:.1%} of the {int(labelled.sum())} held-out rows: it was probably "
                "trained on them, and then weights fitted there trust it too much. Hold out rows that no teacher has seen."
            )
    return sentences


def build_fusion(spec: Any, auto: FusionRule | None = None) -> Fusion | FusionRule | FusionChoice:
    """What a user writes of a fusion, as the fusion or as what is yet to be fitted.

    Args:
        spec: ``"auto"``; a name of `ALL_FUSIONS` or a path ``"pkg.mod:Name"``; a mapping
            ``{"use": name, **options}``, with ``"fit": True`` to fit it on held-out rows, the options then being those
            of ``fit``; a `Fusion`, `FusionRule` or `FusionChoice`, returned as it is. Classes whose parameters only
            a fit can give are fitted wherever none are written.
        auto: What ``"auto"`` means; None: `AutoFusion`.

    Raises:
        ConfigurationError: Unknown name, options that do not fit.

    Example:
        >>> build_fusion({"use": "linear_pool", "weights": [1, 3]})
        LinearPool(weights=(0.25, 0.75))
        >>> build_fusion({"use": "log_pool", "fit": True})
        FitFusion(rule=<class 'hf_distill.fusion.log_pool.LogPool'>, options={})
    """
    if isinstance(spec, FusionChoice):
        return spec
    if spec == "auto" or spec == {"use": "auto"}:
        return AutoFusion() if auto is None else auto
    given = {"use": spec} if isinstance(spec, str) else spec
    if not isinstance(given, Mapping) or not isinstance(given.get("use"), str):
        return _callable(build(spec, ALL_FUSIONS, kind="fusion"))
    name, options = given["use"], {key: value for key, value in given.items() if key not in ("use", "fit")}
    found = find(name, ALL_FUSIONS, "fusion")
    fit = given.get("fit", _means_nothing_unfitted(found, options))
    if not isinstance(fit, bool):
        raise ConfigurationError(f"fusion {name!r}: fit is true or false, found {fit!r}")
    if not fit:
        return _callable(build({"use": name, **options}, ALL_FUSIONS, kind="fusion"))
    if not hasattr(found, "fit"):
        fitted = ", ".join(sorted(key for key, value in ALL_FUSIONS.items() if hasattr(value, "fit")))
        raise ConfigurationError(f"fusion {name!r} has nothing to fit; those that have: {fitted}")
    parameters = inspect.signature(found.fit).parameters
    accepted = parameters.keys() - {"logits", "labels", "mask"}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for option in options:
            if option not in accepted:
                raise ConfigurationError(
                    f"fusion {name!r}: fitting it takes no option {option!r}; it takes: "
                    f"{', '.join(sorted(accepted)) or 'none'}"
                )
    return FitFusion(found, options)


def describe(fusion: Any) -> dict[str, Any]:
    """A fusion as a recipe writes it; `build_fusion` makes an equal one of it.

    Args:
        fusion: A frozen dataclass.

    Returns:
        ``{"use": name, **fields}`` of plain numbers, texts and lists; fields that are None are left out.

    Raises:
        ConfigurationError: The fusion is no dataclass, so nothing says what it is made of.

    Example:
        >>> describe(LinearPool(weights=(1, 3)))
        {'use': 'linear_pool', 'weights': [0.25, 0.75]}
    """
    if not dataclasses.is_dataclass(fusion):
        raise ConfigurationError(
            f"The fusion {fusion!r} is no dataclass, so it cannot be written down: make it one (docs/extending.md)."
        )
    fields = {f.name: _plain(getattr(fusion, f.name)) for f in dataclasses.fields(fusion)}
    return {
        "use": named(fusion, ALL_FUSIONS),
        **{key: value for key, value in fields.items() if value is not None},
    }


def summary(fusion: Any) -> str:
    """A fusion in a line: its name, and its numbers where they are few.

    Example:
        >>> summary(LogPool(weights=(1, 2)))
        'log_pool(weights=[0.333, 0.667])'
    """
    if not dataclasses.is_dataclass(fusion):
        return repr(fusion)
    shown = []
    for field_of in dataclasses.fields(fusion):
        value = _plain(getattr(fusion, field_of.name))
        if isinstance(value, list):
            numbers = len(value) <= 16 and all(isinstance(item, (int, float)) for item in value)
            value = f"[{', '.join(f'{item:.3g}' for item in value)}]" if numbers else "[…]"
        if value is not None:
            shown.append(f"{field_of.name}={value}")
    return f"{named(fusion, ALL_FUSIONS)}({', '.join(shown)})"


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _means_nothing_unfitted(found: Any, options: Mapping[str, Any]) -> bool:
    """Whether a class needs parameters that only a fit can give, and is given none: naming it then asks for the fit."""
    if not (isinstance(found, type) and hasattr(found, "fit")):
        return False
    parameters = inspect.signature(found).parameters
    return any(p.default is p.empty for p in parameters.values()) and not parameters.keys() & options.keys()


def _callable(made: Any) -> Any:
    if callable(made) or hasattr(made, "choose"):
        return made
    raise ConfigurationError(
        f"A fusion is called with the teachers' logits, but {made!r} is a {type(made).__name__}: see docs/extending.md."
    )
