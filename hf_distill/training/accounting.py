"""What each part of the loss amounts to: over one optimizer step, one logging window, one evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import EvalPrediction

from ..fusion.alignment import labelled as with_label
from ..losses import reduce_loss


class LossTerm(NamedTuple):
    """One summand of the loss.

    Attributes:
        values: (N,) per unit, or a scalar that is the mean over the units that count.
        weight: Its weight in the loss; 0 is only logged.
        labelled: Whether only labelled units count.
    """

    values: Tensor
    weight: float
    labelled: bool = False


def log_name(term: str) -> str:
    """What logs call a term.

    Example:
        >>> log_name("distill"), log_name("teacher_disagreement")
        ('loss_distill', 'teacher_disagreement')
    """
    return term if term == "teacher_disagreement" else f"loss_{term}"


def count_units(batches: Sequence[Mapping[str, Any]], device: torch.device) -> Tensor:
    """How many units count in some batches.

    Args:
        batches: Batches with ``labels`` (N,) or (N, C).
        device: Where the counts are wanted.

    Returns:
        (2,) int64: labelled units, all units.
    """
    labels = torch.cat([batch["labels"] for batch in batches]).to(device)
    labelled = with_label(labels).sum()
    return torch.stack([labelled, torch.full_like(labelled, len(labels))])


def total_loss(
    terms: Mapping[str, LossTerm], labels: Tensor, counts: Tensor | None = None, processes: int = 1
) -> tuple[Tensor, dict[str, Tensor]]:
    """Reduce every term, once, and add them up by their weights.

    A term is the sum over this micro-batch divided by the count of the whole update, times the number of processes,
    because gradients are averaged over these: neither accumulation nor processes then change anything, also where
    rows without labels are spread unevenly.

    Args:
        terms: The terms by name.
        labels: (N,) int64, -100 where a unit has none; or (N, C) numbers, NaN where it has none.
        counts: `count_units` of the whole update over all processes; None: of this batch alone.
        processes: How many processes ``counts`` spans.

    Returns:
        The loss with its graph, and every term's value without one.

    Example:
        >>> terms = {"task": LossTerm(torch.tensor([1.0, 5.0]), 0.5, labelled=True)}
        >>> total_loss(terms, torch.tensor([1, -100]))
        (tensor(0.5000), {'task': tensor(1.)})
    """
    if counts is None:
        counts = count_units([{"labels": labels}], labels.device)
    labelled = with_label(labels)
    loss, parts = None, {}
    for name, term in terms.items():
        mask = labelled if term.labelled else None
        part = processes * reduce_loss(
            term.values.expand(labelled.shape), mask=mask, num_items=counts[0 if term.labelled else 1]
        )
        parts[name] = part.detach()
        if term.weight:
            loss = term.weight * part if loss is None else loss + term.weight * part
    assert loss is not None, "no term has a weight"
    return loss, parts


class TrainingSums:
    """Parts of the loss since the last log: summed on the device, brought to the CPU only when logging."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._since = 0

    def add(self, parts: Mapping[str, Tensor], step: int) -> None:
        """Add a micro-batch.

        Args:
            parts: Of `total_loss`.
            step: How many updates were finished before.
        """
        if not self._sums:
            self._since = step
        for name, part in parts.items():
            part = torch.where(part.isfinite(), part, 0.0)  # of an update that a gradient scaler skips
            self._sums[name] = self._sums[name] + part if name in self._sums else part

    def drain(self, step: int, mean_over_processes: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means over the updates since the last call, and a new start.

        Args:
            step: How many updates are finished now.
            mean_over_processes: Averages a tensor over the processes; every process calls it.
        """
        if not self._sums:
            return {}
        values = mean_over_processes(torch.stack(list(self._sums.values()))) / max(step - self._since, 1)
        means = {log_name(name): value for name, value in zip(self._sums, values.tolist(), strict=True)}
        self._sums = {}
        return means


class EvaluationRows:
    """Per-unit values of an evaluation, so that its means do not depend on how rows were batched."""

    def __init__(self) -> None:
        self._batches: list[dict[str, tuple[Tensor, Tensor]]] = []
        self._weights: dict[str, float] = {}

    def add(self, terms: Mapping[str, LossTerm], labels: Tensor, gather: Callable[[Any], Any]) -> None:
        """Add a batch.

        Args:
            terms: The terms by name.
            labels: (N,) or (N, C).
            gather: Concatenates over the processes and drops rows that were repeated to fill the last batch.
        """
        labelled = with_label(labels)
        # Which units count travels beside the values: a NaN among these is a diverged run, and must show.
        values = {
            name: (
                term.values.detach().expand(labelled.shape),
                labelled if term.labelled else torch.ones_like(labelled),
            )
            for name, term in terms.items()
        }
        self._batches.append(gather(values))
        self._weights = {name: term.weight for name, term in terms.items()}

    def means(self) -> dict[str, float]:
        """``loss`` and its parts by their log names; a part in which no unit counts is left out, and so is their sum."""
        if not self._batches:
            return {}
        loss, means = None, {}
        for name, weight in self._weights.items():
            values, counts = (torch.cat([batch[name][part] for batch in self._batches]) for part in (0, 1))
            if counts.any():
                means[log_name(name)] = values[counts].mean().item()
                if weight:
                    loss = (loss or 0.0) + weight * means[log_name(name)]
        return means if loss is None else {"loss": loss, **means}


def over_labelled_rows(compute_metrics: Callable[..., dict[str, float]]) -> Callable[..., dict[str, float]]:
    """A user's ``compute_metrics`` that is asked about labelled rows alone: to it -100 would be a wrong answer.

    Args:
        compute_metrics: A function of `transformers.EvalPrediction`, and of ``compute_result`` under ``batch_eval_metrics``.

    Returns:
        Another, which gives nothing where no row has a label.

    Example:
        >>> import numpy as np
        >>> count = over_labelled_rows(lambda prediction: {"rows": len(prediction.label_ids)})
        >>> count(EvalPrediction(np.zeros((3, 2)), np.array([1, -100, 0]))), count(EvalPrediction(np.zeros((1, 2)), np.array([-100])))
        ({'rows': 2}, {})
    """

    def computed(prediction: EvalPrediction, *args: Any, **options: Any) -> dict[str, float]:
        labels = prediction.label_ids
        if labels is None:
            return compute_metrics(prediction, *args, **options)
        known = with_label(labels)
        in_batches = bool(
            args or options
        )  # whoever keeps sums is asked for them in the end, also after an empty batch
        if not known.any() and not in_batches:
            return {}
        kept = EvalPrediction(
            _rows_of(prediction.predictions, known),
            _rows_of(labels, known),
            _rows_of(prediction.inputs, known),
            _rows_of(prediction.losses, known),
        )
        return compute_metrics(kept, *args, **options)

    return computed


def _rows_of(values: Any, known: Any) -> Any:
    """Those rows of arrays or tensors, alone, in sequences or in mappings."""
    if values is None:
        return None
    if isinstance(values, Mapping):
        return {key: _rows_of(value, known) for key, value in values.items()}
    if isinstance(values, (tuple, list)):
        return type(values)(_rows_of(value, known) for value in values)
    return values[known] if getattr(values, "shape", ()) and len(values) == len(known) else values
