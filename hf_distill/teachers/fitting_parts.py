"""Whether a model, its config and its tokenizer fit together: one check for teacher, student and baseline.

Checkpoints are put together by hand, and their parts disagree more often than they are damaged: a token was added without
an embedding for it, a tokenizer comes from another model, labels are counted from 1. What a rule can tell, a rule tells;
where none can, the model is run once over one row. That it passed is remembered with the hash of its files, so a cached
teacher is not loaded for it again, unless there are `CHECKS` that it has not seen.

Shapes: L tokens, C classes.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import DataError, LabelNameError, in_a_line
from ..rows.views import (
    RowRule,
    TokenView,
    counts_behind_padding,
    input_length,
    named_inputs,
    position_tables,
    text_batches,
    without_adapter,
)
from .checkpoints import output_layer

CHECKS = 1
"""Which checks a model has passed, in what a cache remembers of it: raise whenever one is added here."""

# Longer rows are not tried: a decoder of thousands of positions counts them in its rotations, not in a table.
_LONGEST_TRIED = 4096
_TYPES = "token_type_ids"


def open_view(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None, *, what: str
) -> TokenView:
    """How a model reads text, once all its parts are known to fit together.

    Args:
        model: The model.
        tokenizer: Its tokenizer. Where the model has a single token type and the tokenizer gives pairs two, the view has
            a copy that gives none.
        max_length: Longest input in tokens; None: what tokenizer and positions allow.
        what: Whose they are, for messages: "Teacher 'bert'", "The student".

    Returns:
        The view, which refuses rows that would break the model. A config without a padding token gets the tokenizer's,
        where the model answers from the last token before the padding.

    Raises:
        DataError: Two parts disagree.
        ConfigurationError: ``max_length`` is more than the positions allow.

    Example:
        >>> open_view(bert, bert_tokenizer, None, what="The student").max_length
        64
    """
    refuse_label_map(model.config, what)
    length = input_length(model, tokenizer, max_length, what=what)
    _refuse_vocabulary(model, tokenizer, what)
    tokenizer = _with_token_types(model, tokenizer, what)
    _settle_padding(model, tokenizer, what)
    view = TokenView(tokenizer, length, (RowRule(what, _end_token(model, tokenizer, what)),))
    _refuse_outputs(model, view, what)
    _refuse_left_padding(model, view, what)
    _try_longest(model, view, what)
    return view


def refuse_other_view(model: PreTrainedModel, view: TokenView, *, what: str) -> None:
    """Refuse a model that cannot read what another model's view makes of a text.

    Args:
        model: A baseline.
        view: The student's.
        what: Whose model it is, for messages.

    Raises:
        DataError, ConfigurationError: As `open_view`, and where it would need other inputs.
    """
    if open_view(model, view.tokenizer, view.max_length, what=what).key != view.key:
        raise DataError(
            f"{what}: it has a single token type, but reads the student's tokens, which have more: give a model that was "
            "made for the student's tokenizer."
        )


def name_outputs(model: PreTrainedModel, labels: Mapping[str, str] | Sequence[str] | None) -> None:
    """Let a complete list of names stand for a config's, where that numbers them wrongly or has another number of them.

    Args:
        model: The model, whose config is written.
        labels: As for `Teacher`.
    """
    if labels is None or isinstance(labels, (str, Mapping)):
        return
    own, names = model.config.id2label or {}, [str(label) for label in labels]
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    misnumbered = len(names) == len(own) and set(own) != set(range(len(own)))
    miscounted = len(names) != len(own) and layers and layers[-1].out_features == len(names)
    if misnumbered or miscounted:
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: i for i, name in enumerate(names)}


def refuse_label_map(config: PretrainedConfig, what: str) -> None:
    """Refuse a config whose ``id2label`` does not number the outputs from 0.

    Raises:
        DataError: It is so.
    """
    names = config.id2label or {}
    keys, expected = list(names), list(range(len(names)))
    if sorted(map(str, keys)) == sorted(map(str, expected)) and all(isinstance(key, int) for key in keys):
        return
    ordered = [str(names[key]) for key in sorted(keys, key=lambda key: (not isinstance(key, int), key))]
    said = f"{what}: its config's id2label has the keys {keys}, expected {expected}, one per output: "
    if what.startswith("Teacher"):
        raise LabelNameError.of(f"{said}give the names in the order of its outputs, e.g. ", ordered, ".")
    raise DataError(f"{said}correct it, e.g. model.config.id2label = {dict(enumerate(ordered))}.")


def _refuse_outputs(model: PreTrainedModel, view: TokenView, what: str) -> None:
    """Refuse another number of outputs than the config names: `output_layer` finds the head by that number."""
    named = model.config.num_labels
    if output_layer(model) is not None:
        return
    logits = _logits(model, view, "a", 1, f"{what}: a forward of one word")
    if logits is not None and logits.shape[-1] != named:
        names = [str(model.config.id2label[i]) for i in range(named)]
        said = (
            f"{what}: its head has {logits.shape[-1]} outputs, but its config's id2label names {named}, {names}: name all "
            "in their order, in model.config.id2label = {0: …}"
        )
        if what.startswith("Teacher"):
            raise LabelNameError.of(f"{said}, or in ", {}, "[…].")
        raise DataError(f"{said}.")


def _refuse_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    """Refuse a tokenizer with tokens that the model has no embedding for."""
    try:
        rows = model.get_input_embeddings().weight.shape[0]
    except (AttributeError, NotImplementedError):  # hashes characters, as CANINE
        return
    if getattr(model.config, "vocab_size", None) is None:
        return
    vocabulary = tokenizer.get_vocab()
    token, largest = max(vocabulary.items(), key=lambda item: item[1])
    if largest >= rows:
        without = sum(i >= rows for i in vocabulary.values())
        raise DataError(
            f"{what}: its tokenizer's token {token!r} has the id {largest}, but the model has {rows} embeddings, so "
            f"{without} token(s) have none: load the tokenizer that belongs to the model, or, where tokens were added, "
            f"call model.resize_token_embeddings({largest + 1}) and fine-tune."
        )


def _with_token_types(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, what: str
) -> PreTrainedTokenizerBase:
    """A tokenizer whose token types the model has: the same one, or a copy that gives none."""
    tables = [
        module.weight.shape[0]
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == "token_type_embeddings" and getattr(module, "weight", None) is not None
    ]
    if not tables or _TYPES not in tokenizer.model_input_names or _TYPES not in named_inputs(model):
        return tokenizer
    rows, pair = min(tables), tokenizer(["a"], ["a"])
    largest = max([*pair.get(_TYPES, [[0]])[0], tokenizer.pad_token_type_id])
    if largest < rows:
        return tokenizer
    if rows == 1:  # whichever it is given, there is one: as klue/roberta, which is used without token types
        own = copy.deepcopy(tokenizer)
        own.model_input_names = [name for name in own.model_input_names if name != _TYPES]
        own.init_kwargs["model_input_names"] = own.model_input_names
        return own
    raise DataError(
        f"{what}: its tokenizer gives pairs the token type {largest}, but the model has the types 0 to {rows - 1} "
        "(type_vocab_size): load the tokenizer that belongs to the model."
    )


def _settle_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    """Let model and tokenizer mean the same token by padding, where the model looks for it."""
    inside = without_adapter(model)
    if not hasattr(inside, "score") and "pad_token_id" not in _names_in_forward(inside):
        return
    # Heads on decoders answer from the last token that is not the config's padding token.
    config = inside.config.get_text_config()
    if config.pad_token_id is None:
        for settled in {id(part): part for part in (config, inside.config, model.config)}.values():
            settled.pad_token_id = tokenizer.pad_token_id
    elif config.pad_token_id != tokenizer.pad_token_id:
        raise DataError(
            f"{what}: its config's pad_token_id is {config.pad_token_id}, its tokenizer's "
            f"{tokenizer.pad_token_id}, so it would answer from the padding of a batch: set "
            "model.config.pad_token_id = tokenizer.pad_token_id."
        )


def _end_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, what: str) -> int | None:
    """The token that the model answers from, as BART and T5 do; None where it answers from elsewhere."""
    inside = without_adapter(model)
    if "eos_token_id" not in _names_in_forward(inside):
        return None
    token = inside.config.eos_token_id
    if token not in tokenizer([""])["input_ids"][0]:
        raise DataError(
            f"{what}: it answers from its end token (eos_token_id {token}), which its tokenizer does not add to a text "
            f"(its eos_token_id is {tokenizer.eos_token_id}): load the tokenizer that belongs to the model."
        )
    return token


def _names_in_forward(model: nn.Module) -> tuple[str, ...]:
    """What the forward looks up, as the names of attributes; heads say in no other place which token they answer from."""
    return inspect.unwrap(type(model).forward).__code__.co_names


def _refuse_left_padding(model: PreTrainedModel, view: TokenView, what: str) -> None:
    """Refuse padding on the left where it moves what the model reads: its answers would depend on the rest of a batch."""
    if view.tokenizer.padding_side != "left":
        return
    error = DataError(
        f"{what}: it counts positions from the left, padding included, and its tokenizer pads there: "
        'set tokenizer.padding_side = "right".'
    )
    for table in position_tables(model):
        of_tokens = counts_behind_padding(table) and table.padding_idx == view.tokenizer.pad_token_id
        # OPT's table is given the mask, from which it counts.
        if not of_tokens and "attention_mask" not in inspect.signature(table.forward).parameters:
            raise error
    about = f"{what}: a forward of one word"
    alone, padded = (_logits(model, view, "a", rows, about) for rows in (1, 2))
    if alone is None or padded is None:
        return
    # Half precision rounds its way to other digits at another length.
    close = 1e-3 if alone.dtype == torch.float32 else 5e-2
    if not torch.allclose(
        alone[0].float(), padded[0].float(), rtol=close, atol=close * float(alone.abs().max())
    ):
        raise DataError(
            f"{what}: its tokenizer pads on the left, and it answers a row alone otherwise than beside a longer one (it "
            'reads its first token, or counts padding): set tokenizer.padding_side = "right".'
        )


def _try_longest(model: PreTrainedModel, view: TokenView, what: str) -> None:
    """Run a row of the longest length, where positions are counted and nothing says in which table."""
    if view.max_length is None or view.max_length > _LONGEST_TRIED or position_tables(model):
        return
    if any("Rotary" in type(module).__name__ or "rel" in name for name, module in model.named_modules()):
        return
    about = (
        f"{what}: a forward of its longest input, {view.max_length} tokens, though shorter inputs may be right "
        "(pass max_length=),"
    )
    _logits(model, view, "a " * 2 * view.max_length, 1, about)


def _logits(model: PreTrainedModel, view: TokenView, text: str, rows: int, about: str) -> Tensor | None:
    """What the model says, (rows, C), of a text and of longer ones; None where it cannot be moved to a CPU.

    A failed look-up on an accelerator would end the process, so the model is run on the CPU.

    Raises:
        DataError: It cannot be run.
    """
    if hasattr(model, "hf_device_map") or getattr(model, "quantization_method", None) is not None:
        return None
    texts = [text, *[text + " a" * 8] * (rows - 1)]
    (inputs,) = text_batches(view, [texts], rows)
    known = named_inputs(model)
    with _at_rest(model):
        try:
            return model(**{key: value for key, value in inputs.items() if key in known}).logits
        except Exception as error:  # the model's own code, which may raise anything
            raise DataError(f"{about} fails: {type(error).__name__}: {in_a_line(error)}.") from error


@contextlib.contextmanager
def _at_rest(model: PreTrainedModel) -> Iterator[None]:
    """The model on the CPU and in evaluation mode, and afterwards as it was; no random number is drawn for it."""
    training, home = model.training, next(model.parameters()).device
    modes: list[Any] = [module for module in model.modules() if module.training]
    model.eval()
    if home.type != "cpu":
        model.to("cpu")
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        if home.type != "cpu":
            model.to(home)
        model.training = training
        for module in modes:
            module.training = True
