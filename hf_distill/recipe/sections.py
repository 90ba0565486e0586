"""The sections of a recipe as frozen, strict models: what may be written, of which type, within which range.

What concerns two keys at once, and the section `training`, whose keys are those of `TrainingArguments`, is
checked in `checking.py` and `training_section.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    Strict,
    WrapValidator,
    model_validator,
)

from ..tasks import TASKS, known_family

SPLITS = ("train", "validation", "test")

SEEDS_OF_CACHED = 3
"""How many seeds a verdict has where teachers are cached and nobody says: with fewer no interval is of use."""


class Section(BaseModel):
    """What all sections share: unknown keys are refused, nothing is converted, nothing changes afterwards."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


def _not_empty(value: str) -> str:
    if not value.strip():
        raise ValueError("expected text, found an empty string")
    return value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _named_by(key: str) -> BeforeValidator:
    """Let a text alone stand for the mapping that has it under `key`."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


def _is_spec(value: Any) -> Any:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, Mapping) and isinstance(value.get("use"), str):
        return dict(value)
    raise ValueError("expected a name, a path pkg.mod:Name, or a mapping {use: name, option: value}")


def _is_losses(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and value:
        return tuple(_is_spec(one) for one in value)
    return _is_spec(value)


def _or_schedule(value: Any, number: Callable[[Any], float]) -> Any:
    if not isinstance(value, Mapping):
        return number(value)
    if not isinstance(value.get("use"), str):
        raise ValueError("expected a number or a schedule, {use: linear, start: 4, end: 1}")
    return dict(value)


def _is_range(value: Any) -> Any:
    written = list(value) if isinstance(value, (list, tuple)) else []
    ends, scale = written[:2], written[2:]
    numbers = [float(end) for end in ends if isinstance(end, (int, float)) and not isinstance(end, bool)]
    if len(numbers) != 2 or scale not in ([], ["log"]):
        raise ValueError("expected [lowest, highest] or [lowest, highest, log]")
    if not numbers[0] < numbers[1]:
        raise ValueError("expected the lower number first")
    return (*numbers, *scale)


def _is_layers(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    listed = isinstance(value, (list, tuple)) and len(value) > 0
    if listed and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in value):
        return tuple(value)
    raise ValueError("expected how many layers to keep, or the list of which, counted from 0")


def _is_layer_map(value: Any) -> Any:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, (list, tuple)) and value and all(_is_pair(pair) for pair in value):
        return tuple(tuple(pair) for pair in value)
    raise ValueError(
        "expected last, uniform, skip, or pairs of a student's and a teacher's layer, [[1, 2], [2, 4]]"
    )


def _is_pair(value: Any) -> bool:
    numbers = isinstance(value, (list, tuple)) and len(value) == 2
    return numbers and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in value)


def _is_label_map(value: Any) -> Any:
    if (
        isinstance(value, Mapping)
        and value
        and all(isinstance(x, str) for pair in value.items() for x in pair)
    ):
        return dict(value)
    if isinstance(value, (list, tuple)) and value and all(isinstance(x, str) for x in value):
        return tuple(value)
    raise ValueError(
        "expected a mapping from the checkpoint's label names to yours ({LABEL_0: negative, …}) "
        "or the list of your names in the checkpoint's order"
    )


Text = Annotated[str, AfterValidator(_not_empty)]
# A YAML list arrives as a list; the tuple makes the section unchangeable. Its items stay strict.
Texts = Annotated[tuple[Text, ...], Strict(False), Field(min_length=1)]
Paths = Annotated[Texts, BeforeValidator(_as_list)]
Spec = Annotated[Any, BeforeValidator(_is_spec)]
LossSpec = Annotated[Any, BeforeValidator(_is_losses)]
LabelMap = Annotated[Any, BeforeValidator(_is_label_map)]
LayerMap = Annotated[Any, BeforeValidator(_is_layer_map)]
# More than anybody needs of anything that is counted here, and what every library below can count.
Positive = Annotated[int, Field(ge=1, le=10**9)]
Layers = Annotated[Any, BeforeValidator(_is_layers)]
Range = Annotated[Any, BeforeValidator(_is_range)]
# A number within its range, or the mapping of a schedule, which only `schedules.py` can judge.
Scheduled = (WrapValidator(_or_schedule), PlainSerializer(lambda value: value, return_type=Any))


class Files(Section):
    """Local files per split; csv, tsv, json, jsonl (each also .gz) or parquet."""

    train: Paths
    validation: Paths | None = None
    test: Paths | None = None


class Splits(Section):
    """What the splits of a Hub dataset are called; a slice such as `train[:90%]` works too."""

    train: Text = "train"
    validation: Text | None = "validation"
    test: Text | None = "test"


class MostRows(Section):
    """How many rows of a split are used at most; a number alone is meant of each."""

    train: Positive | None = None
    validation: Positive | None = None
    test: Positive | None = None


def _of_each_split(value: Any) -> Any:
    return dict.fromkeys(SPLITS, value) if isinstance(value, int) and not isinstance(value, bool) else value


class Augment(Section):
    """What is done to training images at random, once per row and epoch; see `Augmentation`."""

    crop: Annotated[float, Field(ge=0)] = 0.0
    flip: bool = False


class Data(Section):
    """Where the raw text and the labels come from, which columns hold them, and how many rows are used.

    `label_columns` names a column for each label or score; `label_column` is then what they become together. Of more than
    `max_rows` rows some are drawn, the same every time; with `streaming` the training rows are never all in memory or on the
    disk, and the first of them are used.
    """

    dataset: Text | None = None
    config: Text | None = None
    revision: Text | None = None
    files: Files | None = None
    splits: Splits = Splits()
    text_columns: Annotated[Texts, Field(max_length=2)] = ("text",)
    label_column: Text = "label"
    label_columns: Texts | None = None
    label_names: Annotated[Texts, Field(min_length=2)] | None = None
    max_rows: Annotated[MostRows | None, BeforeValidator(_of_each_split)] = None
    streaming: bool = False
    augment: Augment | None = None


class Convert(Section):
    """How the outputs of a teacher of another task become the student's.

    Of a score as classes: `edges` between them on the teacher's scale, or `quantiles` of its held-out scores; `spread`, how far from
    an edge the odds change e-fold; `order`, the classes from the lowest score to the highest where their names are no numbers. Of
    classes as a score: `means`, the score of each class. What is left out is fitted on held-out rows.
    """

    edges: Any = None
    spread: Any = None
    order: Any = None
    means: Any = None


class TeacherEntry(Section):
    """One teacher: a fine-tuned checkpoint and what it does not say of itself; `task` where it answers something else than the
    student learns."""

    model: Text
    adapter: Text | None = None
    name: Text | None = None
    revision: Text | None = None
    labels: LabelMap | None = None
    max_length: Positive | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    trust_remote_code: bool = False
    task: Text | None = None
    convert: Convert | None = None


class Teachers(Section):
    """The teachers, in the order in which fusion weights are given, and where their outputs are kept."""

    models: Annotated[
        tuple[Annotated[TeacherEntry, _named_by("model")], ...], Strict(False), Field(min_length=1)
    ]
    cache_dir: Text | None = None
    cache_dtype: Literal["float16", "float32"] = "float16"
    cache_precision: Literal["bf16", "fp16", "auto"] | None = None
    placement: Literal["resident", "swap", "auto"] = "resident"
    precision: Literal["bf16", "fp16", "auto"] | None = None


class Lora(Section):
    """The adapter of a student that is trained through one; the keys are those of `peft.LoraConfig`, without `lora_`."""

    r: Positive = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Paths | None = None


class Student(Section):
    """The student: a checkpoint to start from, or some of its layers, some layers of a teacher, or the configuration of a
    model from scratch.

    `tokenizer` is what stands between rows and model; of images one may write `processor` for it.
    """

    model: Text | None = None
    from_teacher: Text | None = None
    layers: Layers | None = None
    hidden_size: Positive | None = None
    config: dict[str, Any] | None = None
    tokenizer: Text | None = None
    revision: Text | None = None
    max_length: Positive | None = None
    trust_remote_code: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    lora: Lora | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_processor(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping) or "processor" not in raw or raw.get("tokenizer") is not None:
            return raw
        return {
            ("tokenizer" if key == "processor" else key): v for key, v in raw.items() if key != "tokenizer"
        }


class HiddenEntry(Section):
    """One loss between layers of the student and layers of the teachers; the fields are those of `HiddenLoss`."""

    loss: Text = "hidden_mse"
    layers: LayerMap = "last"
    units: Literal["auto", "tokens", "words", "mean", "first"] = "auto"
    weight: Annotated[float, Field(gt=0)] = 1.0
    projection: Literal["each", "shared", "none"] = "each"
    relation_heads: Positive = 12
    teachers: Texts | None = None


class Losses(Section):
    """The distillation loss (several, with weights: a list), how it and the task loss are weighed, and what of that changes while training runs.

    The four numbers may be schedules too, and `distill_weight` also `{use: adaptive, start: 0.5}`.
    """

    distill: LossSpec = "forward_kl"
    temperature: Annotated[float, Field(gt=0), *Scheduled] = 2.0
    task_weight: Annotated[float, Field(ge=0), *Scheduled] = 0.5
    distill_weight: Annotated[float, Field(ge=0), *Scheduled] = 0.5
    label_share: Annotated[float, Field(ge=0, le=1), *Scheduled] = 0.0
    row_weight: Spec | None = None
    hidden: Annotated[tuple[Annotated[HiddenEntry, _named_by("loss")], ...], Strict(False)] = ()


class Evaluation(Section):
    """On which split the verdict is made, by which metrics, with how many seeds, and against what else.

    `single_teacher` also trains the student of the best single teacher, `baseline` names a checkpoint. Without `seeds` a
    recipe has three where its teachers are cached, since a seed then costs no more than a fine-tuning, and else one.
    """

    split: Literal["train", "validation", "test", "none"] | None = None
    metrics: Texts | None = None
    batch_size: Positive | None = None
    baseline: Text | None = None
    verdict: bool = True
    seeds: Positive = 1
    single_teacher: bool = False


class Search(Section):
    """What `hf-distill search` varies, each within a range or over a list, and by which metric it chooses.

    With no knob named, it is temperature, distillation weight, learning rate and fusion, see `search_section.py`.
    """

    temperature: Range | None = None
    distill_weight: Range | None = None
    task_weight: Range | None = None
    label_share: Range | None = None
    learning_rate: Range | None = None
    fusion: Annotated[tuple[Spec, ...], Strict(False), Field(min_length=2)] | None = None
    metric: Literal[
        "nll", "brier", "accuracy", "f1", "precision", "recall", "matthews_correlation", "f1_micro", "label_nll", "label_brier",
        "pearson", "spearman", "mse", "mae",
    ] = "nll"  # fmt: skip


class Hub(Section):
    """Whether the finished student is pushed, and where to: a repository, its main branch unless told otherwise."""

    push: bool = False
    repo: Text | None = None
    private: bool = False
    revision: Text | None = None
    pull_request: bool = False


class Recipe(Section):
    """A recipe as `load_recipe` returns it: checked, with the defaults filled in.

    `training` holds the keys of `TrainingArguments` that were given, and `output_dir`. `register_models`, a path ``pkg.mod:function``, is
    called before any model is loaded: it tells `transformers` of classes of your own.

    Example:
        >>> Recipe(data={"dataset": "stanfordnlp/sst2"}, teachers={"models": ["org/a", "org/b"]},
        ...        student={"model": "distilbert/distilbert-base-uncased"}).losses.temperature
        2.0
    """

    task: Text = "text-classification"
    data: Data
    teachers: Teachers
    student: Student
    fusion: Spec = "auto"
    losses: Losses = Losses()
    training: dict[str, Any] = {}
    evaluation: Evaluation = Evaluation()
    hub: Hub = Hub()
    search: Search | None = None
    register_models: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_loss(cls, raw: Any) -> Any:
        """The loss of a built-in task, where nobody says another: it is resolved here for all who ask."""
        given = raw if isinstance(raw, Mapping) else {}
        task, losses = given.get("task"), given.get("losses", {})
        known = TASKS.get(task) if isinstance(task, str) else None
        if known is None or not isinstance(losses, Mapping) or "distill" in losses:
            return raw
        if known.loss == Losses.model_fields["distill"].default:
            return raw
        return {**raw, "losses": {**losses, "distill": known.loss}}

    @model_validator(mode="before")
    @classmethod
    def _with_columns(cls, raw: Any) -> Any:
        """The columns of a built-in task, where nobody says others."""
        given = raw if isinstance(raw, Mapping) else {}
        task, data = given.get("task"), given.get("data")
        known = TASKS.get(task) if isinstance(task, str) else None
        if known is None or not isinstance(data, Mapping) or "text_columns" in data:
            return raw
        if known.text_columns == Data.model_fields["text_columns"].default:
            return raw
        return {**raw, "data": {**data, "text_columns": list(known.text_columns)}}

    @model_validator(mode="before")
    @classmethod
    def _with_metric(cls, raw: Any) -> Any:
        """What a search chooses by where nobody says: as the task's predictions are scored."""
        given = raw if isinstance(raw, Mapping) else {}
        search, task = given.get("search"), given.get("task")
        family = known_family(task) if isinstance(task, str) else None
        if family is None or not isinstance(search, Mapping) or "metric" in search:
            return raw
        if family.searched == Search.model_fields["metric"].default:
            return raw
        return {**raw, "search": {**search, "metric": family.searched}}

    @model_validator(mode="before")
    @classmethod
    def _with_seeds(cls, raw: Any) -> Any:
        """How many seeds, where nobody says: it depends on the teachers, and is resolved here for all who ask."""
        given = raw if isinstance(raw, Mapping) else {}
        teachers, evaluation = given.get("teachers"), given.get("evaluation", {})
        cached = isinstance(teachers, Mapping) and teachers.get("cache_dir") is not None
        if not (cached and isinstance(evaluation, Mapping)) or "seeds" in evaluation:
            return raw
        if evaluation.get("verdict") is False or evaluation.get("split") in ("none", "train"):
            return raw
        return {**raw, "evaluation": {**evaluation, "seeds": SEEDS_OF_CACHED}}
