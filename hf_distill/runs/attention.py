"""Pictures of what the student of a recipe learned beside its teachers: attention, and layers that are alike."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import datasets
import torch
import transformers
from accelerate import Accelerator
from transformers import PreTrainedModel

from ..errors import ConfigurationError, DataError
from ..evaluation.attention import (
    LayerSimilarity,
    attention_rows,
    compare_layers,
    pooled_states,
    read_attention,
    similarity_figure,
    switched_to_eager,
)
from ..evaluation.attention.maps import Text
from ..evaluation.plots import AttentionRow, attention_grid, save_figure
from ..files import write_text
from ..markdown import markdown_table, shortened
from ..recipe.setup import Setup
from ..rows.views import TokenView
from ..students.loading import open_student
from ..teachers.checkpoints import load_tokenizer, load_with_head
from ..teachers.fitting_parts import open_view
from .evaluate import refuse_untrained

_SECTION = "## Attention and similarity"


@dataclass(frozen=True)
class AttentionReport:
    """What `attention_recipe` found; ``str()`` is attention.md, `save` adds the figures.

    Attributes:
        text: Whose attention is shown.
        attention: What the figure shows of it, the student's first.
        layers, head: What was asked for, as for `plot_attention`.
        similarities: Student against each teacher.
        rows: How many rows they were compared on, N.
        split: Which rows.
        notes: What a reader must know.
    """

    text: Text
    attention: Sequence[AttentionRow]
    layers: Sequence[int] | None
    head: int | None
    similarities: Sequence[LayerSimilarity]
    rows: int
    split: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        texts = [self.text] if isinstance(self.text, str) else self.text
        heads = "The mean over the heads" if self.head is None else f"Head {self.head}"
        of = (
            "the first, middle and last layer"
            if self.layers is None
            else f"layer {', '.join(map(str, self.layers))}"
        )
        lines = [
            "# Attention and similarity",
            "",
            *([*(f"- {note}" for note in self.notes), ""] if self.notes else []),
            "## Attention",
            "",
            # Four spaces: nothing in a text is then Markdown.
            *("    " + " ".join(text.split()) for text in texts),
            "",
            f"{heads} of {of}; what each token on the left gives to the tokens below sums to 1. Each model reads the "
            "text with its own tokenizer.",
            "",
            "![Attention of student and teachers](attention.png)",
            "",
            "## Similarity of layers",
            "",
            f"Linear CKA (arXiv:1905.00414) between layers of the student (lines) and of a teacher (columns), on the means "
            f"over the tokens of {self.rows} rows of the {self.split} split: before training → after it. 1: the rows form "
            "the same shape, up to rotation, shift and scale. Layer 0 is what the embeddings give.",
            "",
            "![Similarity of layers, before and after training](similarity.png)",
        ]
        for found in self.similarities:
            lines += ["", f"### {shortened(found.teacher, 80)}", "", _table(found), ""]
            lines.append(f"With the rows paired at random: at most {found.by_chance:.2f}.")
        return "\n".join(lines)

    def save(self, folder: str | os.PathLike[str], report: str | os.PathLike[str] | None = None) -> Path:
        """Write attention.md, attention.png and similarity.png.

        Args:
            folder: Made if missing.
            report: A report.md that gets a section with links to them, or the section anew; None: none.

        Returns:
            The path of attention.md.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_figure(attention_grid, folder / "attention.png", self.attention)
        save_figure(similarity_figure, folder / "similarity.png", self.similarities)
        write_text(folder / "attention.md", f"{self}\n")
        if report is not None and Path(report).is_file():
            self._add_to(Path(report), folder)
        return folder / "attention.md"

    def _add_to(self, report: Path, folder: Path) -> None:
        where = Path(os.path.relpath(folder, report.parent))
        page, attention, similarity = (
            quote((where / name).as_posix()) for name in ("attention.md", "attention.png", "similarity.png")
        )
        section = (
            f"{_SECTION}\n\nWhat student and teachers attend to in one text, and how alike their layers are on {self.rows} "
            f"rows of the {self.split} split, before and after training, in numbers: [attention.md]({page}).\n\n"
            f"![Attention of student and teachers]({attention})\n\n"
            f"![Similarity of layers, before and after training]({similarity})\n"
        )
        others = re.sub(
            rf"^{_SECTION}\n.*?(?=^## |\Z)",
            "",
            report.read_text(encoding="utf-8"),
            flags=re.MULTILINE | re.DOTALL,
        )
        write_text(report, f"{others.rstrip()}\n\n{section}")


def _table(found: LayerSimilarity) -> str:
    assert found.before is not None
    own, theirs = found.cka.shape
    lines = [
        [f"student {i}", *(f"{found.before[i, j]:.2f} → {found.cka[i, j]:.2f}" for j in range(theirs))]
        for i in range(own)
    ]
    return markdown_table(["layer", *map(str, range(theirs))], lines)


def attention_recipe(
    setup: Setup,
    text: Text | None = None,
    *,
    layers: Sequence[int] | None = None,
    head: int | None = None,
    split: str | None = None,
    rows: int = 200,
) -> AttentionReport:
    """Show what the trained student of a recipe and its teachers attend to, and how their layers came to be alike.

    The student before training is made as `train` makes it. Teachers run live, one in memory at a time, also where there is
    a cache, which holds no attention.

    Args:
        setup: Of the recipe; the student is read from its output folder.
        text: A text, or a pair; None: the first row of the split.
        layers, head: Which attention to show, as for `plot_attention`.
        split: "train", "validation" or "test"; None: the first of validation, test and train that there is.
        rows: N: on how many rows of the split layers are compared; taken evenly over it.

    Raises:
        ConfigurationError: A layer or head that no model has, a model that gives no attention, too few rows.
        DataError: There is no trained student, no such split, or a model that cannot be loaded.
    """
    recipe, data = setup.recipe, setup.rows
    if not setup.task.content.of_tokens:
        raise ConfigurationError(
            f"attention and layers are compared over tokens, and models of {setup.task.content.name} are not known to have any"
        )
    split = split or next(name for name in ("validation", "test", "train") if name in data)
    if split not in data:
        raise DataError(f"there is no {split} split; the data has only {', '.join(data)}")
    columns = recipe.data.text_columns
    text = _texts(data[split], columns, 1, split)[0] if text is None else text
    if len(columns) != (1 if isinstance(text, str) else len(text)):
        raise ConfigurationError(
            f"the recipe's rows have {len(columns)} text column(s) ({', '.join(columns)}): give the text to show as many "
            "parts, each with its own --text"
        )
    texts = _texts(data[split], columns, rows, split)
    student, first, device = _students(setup)
    states = pooled_states(*student, texts, "The student")
    before = pooled_states(*first, texts, "The student before training")
    if [layer.shape for layer in before] != [layer.shape for layer in states]:
        raise ConfigurationError(
            f"the student in {setup.folder} has {len(states) - 1} layers of width {states[-1].shape[1]}, but "
            f"the recipe starts one with {len(before) - 1} of {before[-1].shape[1]}: use the recipe that it was trained "
            "with, recipe.yaml in its folder"
        )
    systems, similarities = [("student", *read_attention(*student, text, "The student"))], []
    del student, first
    for spec in setup.teachers:
        teacher = spec.load(recipe.task).to(device)
        read, what = (teacher.model, teacher.view), f"Teacher {teacher.name!r}"
        systems.append((teacher.name, *read_attention(*read, text, what)))
        similarities.append(compare_layers(teacher.name, pooled_states(*read, texts, what), states, before))
    replaced = {name: implementation for name, _, implementation in systems if implementation is not None}
    notes = [switched_to_eager(replaced)] if replaced else []
    if split == "train":
        notes.append("The student was trained on these rows.")
    return AttentionReport(
        text=text,
        attention=attention_rows([(name, maps) for name, maps, _ in systems], layers, head),
        layers=layers,
        head=head,
        similarities=similarities,
        rows=len(texts),
        split=split,
        notes=tuple(notes),
    )


def _texts(rows: datasets.Dataset, columns: Sequence[str], count: int, split: str) -> list[Text]:
    """Texts or pairs of rows that are taken evenly, the first included."""
    count = min(max(count, 1), len(rows))
    picked = rows.with_format(None).select([i * len(rows) // count for i in range(count)])
    found = list(zip(*(picked[column] for column in columns), strict=True))
    if not found or not all(isinstance(part, str) for row in found for part in row):
        raise DataError(
            f"the {split} rows must have text in {', '.join(columns)}, but there are {'empty ones' if found else 'none'}"
        )
    return [row[0] for row in found] if len(columns) == 1 else found


def _students(
    setup: Setup,
) -> tuple[tuple[PreTrainedModel, TokenView], tuple[PreTrainedModel, TokenView], torch.device]:
    """The trained student, the student that the recipe starts with, and where they are."""
    args, task, length = setup.arguments, setup.task, setup.recipe.student.max_length
    folder, data = setup.folder, setup.recipe.data
    refuse_untrained(folder, "config.json", "adapter_config.json")
    device = Accelerator(cpu=args.use_cpu).device
    trained = load_with_head(str(folder), task, what="The student", require_head=True).to(device)
    tokenizer = load_tokenizer(str(folder), what="The student")
    view = open_view(trained, tokenizer, length, what="The student")
    model, tokenizer = setup.student(args.seed)
    transformers.set_seed(args.seed)  # as the trainer does before it loads one
    first = open_student(
        model,
        tokenizer,
        setup.rows["train"],
        task=task,
        label_column=data.label_column,
        label_names=data.label_names,
        max_length=length,
    )
    return (trained, view), (first.model.to(device), first.view), device
