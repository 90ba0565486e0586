"""Whether a model and its tokenizer fit together, and the view that comes of both.

What a rule can tell, a rule tells; where none can, the model is run once over one row.
"""

from __future__ import annotations

import copy
import inspect

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import DataError
from .trying import try_model
from .views import (
    RowRule,
    TokenView,
    counts_behind_padding,
    input_length,
    named_inputs,
    position_tables,
    without_adapter,
)

# Longer rows are not tried: a decoder of thousands of positions counts them in its rotations, not in a table.
_LONGEST_TRIED = 4096
_TYPES = "token_type_ids"


def open_token_view(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None, *, what: str
) -> TokenView:
    """How a model reads text, once its tokenizer is known to fit.

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
    """
    length = input_length(model, tokenizer, max_length, what=what)
    _refuse_vocabulary(model, tokenizer, what)
    tokenizer = _with_token_types(model, tokenizer, what)
    _settle_padding(model, tokenizer, what)
    view = TokenView(tokenizer, length, (RowRule(what, _end_token(model, tokenizer, what)),))
    _refuse_left_padding(model, view, what)
    _try_longest(model, view, what)
    return view


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
    """What the model says, (rows, C), of a text and of longer ones; None where it cannot be moved to a CPU."""
    return try_model(model, view, [[text, *[text + " a" * 8] * (rows - 1)]], about)
