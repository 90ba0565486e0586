"""What the teachers say of labelled rows that nobody was trained on: collected once, to fit or to judge fusions.

Shapes: K teachers, N rows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import ConfigurationError, CorruptStateError, DataError, UnsafeFileError, in_a_line
from ..files import read_json, write_json
from ..fusion import FusionChoice, HeldOut, build_fusion, describe
from ..fusion.alignment import TeacherOutputs, align, scales_in_words, scales_of
from ..fusion.alignment import labelled as with_label
from ..fusion.conversion import restored, stored, without_rows
from ..fusion.table import ALL_FUSIONS
from ..lookup import named, own_path, refuse_untrusted
from ..processes import once
from ..rows.labels import count_labelled
from .pool import TeacherPool

FUSION_FILE = "fusion.json"
"""Where a run keeps the fusion that it fitted or chose."""

_FORMAT = 1

# A fusion has few parameters; more rows would cost the teachers' time and change nothing.
_MOST_ROWS = 4096


def collect(loader: Any, pool: TeacherPool, accelerator: Accelerator) -> HeldOut:
    """Run the teachers over rows, and find out how outputs of another kind become the student's where that is yet to be fitted.

    Conversions are fitted on two thirds of the labelled rows, told apart by their content as for `AutoFusion`; the pool keeps them.

    Args:
        loader: Batches of `MultiTeacherCollator`, sharded by the accelerator.
        pool: The teachers, on the accelerator's device.
        accelerator: Runs and gathers.

    Returns:
        `HeldOut`, the same on every process, rows in the loader's order.

    Raises:
        ConfigurationError, DataError: The rows do not say how to convert a teacher's outputs.
    """
    batches = []
    for inputs in tqdm(loader, desc="Held-out rows", disable=not accelerator.is_main_process, leave=False):
        with torch.no_grad(), accelerator.autocast():
            outputs = [own.logits.float().contiguous() for own in pool.outputs(inputs)]
        rows = (inputs["labels"], inputs["example_id"], *outputs)
        batches.append([part.cpu() for part in accelerator.gather_for_metrics(rows)])
    labels, ids, *outputs = (torch.cat(parts) for parts in zip(*batches, strict=True))
    labels = pool.family.of_fits(labels)
    _settle(pool, outputs, labels, ids, accelerator)
    batch = align([TeacherOutputs(own) for own in outputs], pool.label_maps)
    return HeldOut(batch.logits, labels, batch.mask, ids)


def _settle(
    pool: TeacherPool, outputs: Sequence[Tensor], labels: Tensor, ids: Tensor, accelerator: Accelerator
) -> None:
    """Fit what conversions need to know on two thirds of the labelled rows."""
    unsettled = [k for k, own in enumerate(pool.label_maps) if not own.settled]
    if unsettled:
        told = with_label(labels) & (ids % 3 != 0)
        told = told if bool(told.any()) else with_label(labels)
        maps = pool.label_maps
        pool.settle(
            once(lambda: [maps[k].fit(outputs[k][told], labels[told]) for k in unsettled], accelerator)
        )
        pool.converted_on = ids[told]


def fitting_rows(dataset: Any) -> datasets.Dataset | str:
    """Rows for a fit, out of an evaluation set: all that have a label, or those of the least ids where there are very many.

    Args:
        dataset: Prepared rows, or what a trainer was given instead.

    Returns:
        Prepared rows; or why there are none, as the end of a sentence.
    """
    if dataset is None:
        return "no evaluation rows were given"
    if isinstance(dataset, dict):
        return "there are several evaluation sets, and nothing says which is for fitting"
    if not isinstance(dataset, datasets.Dataset):
        return "the evaluation rows are a stream"
    if count_labelled(dataset) == 0:
        return "the evaluation rows have no labels"
    columns = dataset.with_format("numpy")
    labelled = np.flatnonzero(with_label(columns["labels"][:]))
    ids = columns["example_id"][:][labelled]
    return dataset.select(np.sort(labelled[np.argsort(ids, kind="stable")[:_MOST_ROWS]]))


def choose_fusion(
    fusion: Any,
    dataset: Any,
    *,
    pool: TeacherPool,
    loader: Callable[[datasets.Dataset], Any],
    accelerator: Accelerator,
) -> FusionChoice:
    """What a user wrote of the fusion, fitted or chosen on held-out rows where that is asked for, and so the pool's conversions.

    Args:
        fusion: As for `build_fusion`, or a `FusionChoice` made before.
        dataset: The prepared rows; they are not touched where nothing is to be fitted.
        pool: The teachers.
        loader: Makes a sharded loader of prepared rows.
        accelerator: Runs and gathers.

    Raises:
        ConfigurationError, DataError: A fusion is to be fitted, and the rows do not allow it.
    """
    made = build_fusion(fusion, pool.family.auto)
    if isinstance(made, FusionChoice):
        pool.settle(made.conversions)
    unsettled = [own for own in pool.label_maps if not own.settled]
    rows, held_out = fitting_rows(dataset) if unsettled or hasattr(made, "choose") else "", None
    if unsettled and isinstance(rows, str):
        raise without_rows(unsettled[0], rows)
    if not isinstance(rows, str):
        held_out = collect(loader(rows), pool.to(accelerator.device), accelerator)
    if not hasattr(made, "choose"):
        choice = made if isinstance(made, FusionChoice) else FusionChoice(made, _as_given(made, pool))
    elif held_out is None:
        choice = made.without_rows(rows)
    else:
        names = [teacher.name for teacher in pool.teachers]
        choice = once(lambda: made.choose(held_out, names), accelerator)
    if pool.conversions:
        seen = torch.cat([choice.fitted_on, pool.converted_on]).unique()
        choice = choice._replace(conversions=pool.conversions, fitted_on=seen)
    if choice.reason and accelerator.is_main_process:
        print("\n".join([f"Fusion: {choice.reason}.", *(f"Warning: {text}" for text in choice.warnings)]))
    return choice


def _as_given(fusion: Any, pool: TeacherPool) -> str:
    """What must be said of a fusion that nobody fitted: by which lines numbers come to the student's scale."""
    scales, names = scales_of(fusion), [teacher.name for teacher in pool.teachers]
    fits = scales is not None and len(scales) == len(names)
    return f"{named(fusion, ALL_FUSIONS)} as given ({scales_in_words(names, scales)})" if fits else ""


def finished_fusion(fusion: Any, what: str) -> FusionChoice:
    """A fusion that needs no fit any more.

    Args:
        fusion: As for `build_fusion`, or a `FusionChoice`.
        what: Who asks, for the message.

    Raises:
        ConfigurationError: It would have to be fitted first.
    """
    made = build_fusion(fusion)
    if hasattr(made, "choose"):
        raise ConfigurationError(
            f"{what} fits nothing, but the fusion {fusion!r} is fitted on held-out rows: pass the fitted one, "
            "trainer.fusion_choice or hf_distill.teachers.held_out.load_choice(folder of the run)."
        )
    return made if isinstance(made, FusionChoice) else FusionChoice(made, "")


def leave_out_fitted(rows: Any, choice: FusionChoice) -> tuple[Any, list[str]]:
    """Rows to report on, without those whose labels the fusion has seen.

    Args:
        rows: Prepared rows.
        choice: The fusion and the rows it was fitted on.

    Returns:
        The other rows, and what a report must say of it.

    Raises:
        DataError: No other row is there.
    """
    if not len(choice.fitted_on) or not isinstance(rows, datasets.Dataset):
        return rows, []
    seen = np.isin(rows.with_format("numpy")["example_id"][:], choice.fitted_on.numpy())
    if not seen.any():
        return rows, []
    if seen.all():
        raise DataError(
            f"All {len(rows)} rows to be evaluated have fitted the fusion, so a report on them would flatter it: give "
            "other rows, or other held-out rows for the fit."
        )
    return rows.select(np.flatnonzero(~seen)), [
        f"{int(seen.sum())} of {len(rows)} rows fitted the fusion and are left out."
    ]


def save_choice(choice: FusionChoice, folder: Path, names: list[str]) -> None:
    """Write a fusion beside the student, as `fusion.json`.

    Args:
        choice: The fusion and where it comes from.
        folder: Of the student.
        names: The teachers' names, in their order.
    """
    content = {
        "format": _FORMAT,
        "fusion": describe(choice.fusion),
        "teachers": names,
        "reason": choice.reason,
        "warnings": list(choice.warnings),
        "fitted_on": choice.fitted_on.tolist(),
    }
    if choice.conversions:  # what few runs have stands only in theirs
        content["conversions"] = [stored(own) for own in choice.conversions]
    write_json(folder / FUSION_FILE, content)


def load_choice(
    folder: str | Path, names: list[str] | None = None, *, trust: Iterable[str] = ()
) -> FusionChoice:
    """Read the fusion that a run saved beside its student.

    Args:
        folder: Of the student.
        names: The teachers it is for; None: not compared.
        trust: Paths ``pkg.mod:Name`` of your own that the file may name.

    Raises:
        UnsafeFileError: It names a fusion that is neither built in nor trusted; nothing is imported.
        CorruptStateError: There is none, or it cannot be read.
        ConfigurationError: It was made for other teachers, or another order of them.
    """
    path = Path(folder) / FUSION_FILE
    try:
        content, _ = read_json(path, _FORMAT)
        own = own_path(content["fusion"], ALL_FUSIONS)
        refuse_untrusted([("fusion", own)] if own else [], trust, path)
        choice = FusionChoice(
            build_fusion(content["fusion"]),
            content["reason"],
            tuple(content["warnings"]),
            torch.tensor(content["fitted_on"], dtype=torch.int64),
            tuple(restored(own) for own in content.get("conversions", ())),
        )
    except UnsafeFileError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptStateError(
            f"{path} does not hold the fusion of a run ({in_a_line(error, 200)}): train again, or give the "
            "fusion itself instead of auto or fit."
        ) from error
    if names is not None and content["teachers"] != names:
        raise ConfigurationError(
            f"{path} is a fusion of the teachers {content['teachers']}, but there are {names}: train again with these."
        )
    return choice
