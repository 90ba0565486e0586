"""What all fits on held-out rows share: which rows count, a solver, and clear words where there is nothing to fit.

Fits run in float64 on the CPU and draw nothing at random: the same rows give the same fusion. scipy is imported by what
needs it, so that applying a fusion needs torch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError


def held_out_rows(
    logits: Tensor, labels: Tensor, mask: Tensor | None, what: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The labelled rows among held-out ones, in float64 on the CPU.

    Args:
        logits: (K, N, C).
        labels: (N,) int64, -100 where unknown.
        mask: (K, N, C) bool, or None. A row whose label no teacher has is left out.
        what: Who fits, for messages.

    Returns:
        Logits (K, n, C) with -inf outside the mask, labels (n,), mask (K, n, C) or None.

    Raises:
        DataError: No labelled row, or outputs that are not finite.
    """
    logits, labels = logits.detach().to("cpu", torch.float64), labels.to("cpu")
    if mask is not None:
        mask = mask.cpu()
        logits = logits.masked_fill(~mask, -torch.inf)
        mask = None if bool(mask.all()) else mask
    counts = (labels >= 0) & (labels < logits.shape[-1])
    if mask is not None:
        counts = counts & mask.any(0).gather(-1, labels.clamp(min=0)[:, None])[:, 0]
    if not bool(counts.any()):
        raise DataError(
            f"{what} is fitted on held-out rows with labels, but none of the {len(labels)} rows given has one that a "
            "teacher knows: pass rows that neither teachers nor student were trained on, with their labels."
        )
    logits, labels = logits[:, counts], labels[counts]
    mask = None if mask is None else mask[:, counts]
    refuse_infinite(logits, mask, what)
    return logits, labels, mask


def refuse_infinite(logits: Tensor, mask: Tensor | None, what: str) -> None:
    """Refuse teachers whose outputs are not finite.

    Args:
        logits: (K, N, C).
        mask: (K, N, C) bool, or None; outside of it anything goes.
        what: Who fits, for the message.

    Raises:
        DataError: Names the first such teacher by its place.
    """
    finite = torch.isfinite(logits) if mask is None else torch.isfinite(logits) | ~mask
    for k, of_teacher in enumerate(finite):
        if not bool(of_teacher.all()):
            raise DataError(
                f"{what} cannot be fitted: teacher {k} (counted from 0) gives outputs that are not finite on held-out "
                "rows. Drop it, or find out why."
            )


def label_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """p_k(y), (K, n): what each teacher gives the label; 0 where it lacks the class."""
    return (
        F.log_softmax(logits, -1).gather(-1, labels[None, :, None].expand(len(logits), -1, 1))[..., 0].exp()
    )


def mean_nll(log_probs: Tensor, labels: Tensor) -> float:
    """Mean −ln p(label) over rows, (n, C) and (n,); a probability of 0 counts as 1e-12, so that models still compare."""
    return -log_probs.gather(-1, labels[:, None]).clamp(min=-27.63).mean().item()


def logit_scale(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Root mean square of each teacher's centred logits, (K,): the scale against which coefficients are large or small."""
    has = torch.ones_like(logits, dtype=torch.bool) if mask is None else mask
    z = logits.masked_fill(~has, 0.0)
    count = has.sum(-1, keepdim=True).clamp(min=1)
    centred = (z - z.sum(-1, keepdim=True) / count).masked_fill(~has, 0.0)
    return (centred.square().sum((1, 2)) / has.sum((1, 2)).clamp(min=1)).sqrt()


def minimise(
    loss: Callable[[Tensor], Tensor],
    start: Tensor,
    bounds: Sequence[tuple[float | None, float | None]] | None = None,
) -> Tensor:
    """Minimum of a smooth function by L-BFGS-B with torch's gradients.

    Args:
        loss: (P,) float64 → scalar.
        start: (P,).
        bounds: A lower and an upper bound per parameter; None: none.

    Returns:
        (P,) float64.
    """
    from scipy.optimize import minimize

    def value_and_gradient(x):  # noqa: ANN001, ANN202 - numpy in, numpy out, as scipy calls it
        point = torch.from_numpy(x.copy()).requires_grad_()
        value = loss(point)
        (gradient,) = torch.autograd.grad(value, point)
        return value.item(), gradient.numpy()

    found = minimize(
        value_and_gradient,
        start.double().numpy(),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": 1000, "ftol": 1e-13, "gtol": 1e-9},
    )
    return torch.tensor(found.x)
