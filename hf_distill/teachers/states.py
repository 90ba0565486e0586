"""What is taken of a model below its logits: some layers' states in some units, or the queries, keys and values of layers.

The same for students and teachers. Layers are numbered as in ``hidden_states``: 0 is what the embeddings give, i what
layer i gives. What is not asked for is not kept.

Shapes: N rows, L tokens, W words, D hidden size.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..errors import ConfigurationError
from ..rows.views import without_adapter
from ..rows.words import first_token, masked_mean, pool_words

UNITS = ("tokens", "words", "mean", "first")
"""What a state may stand for: a token, a word, the mean of a row's tokens, its first token."""

RELATIONS = "relations"
"""In the place of a unit: the queries, keys and values of the layer's attention, per token."""

# Names of the layers that make queries, keys and values, in the order of these; or all three side by side.
_SEPARATE = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("query_proj", "key_proj", "value_proj"),
    ("q_lin", "k_lin", "v_lin"),
)
_FUSED = ("Wqkv", "c_attn")


class Wanted(NamedTuple):
    """One thing asked of a model.

    Attributes:
        layer: Its number.
        units: One of `UNITS`, or `RELATIONS`.
    """

    layer: int
    units: str


States = dict[Wanted, Any]
"""By what was asked for: tokens (N, L, D), words (N, W, D), mean and first (N, D); relations are three of (N, L, D)."""


class Words(NamedTuple):
    """The words of a batch as one view sees them.

    Attributes:
        word_of: (N, L) int64, each token's word, -1 where it is in none.
        count: W, the most words that a row has.
    """

    word_of: Tensor
    count: int


def observe(
    model: Callable[..., Any],
    inside: nn.Module,
    wanted: Sequence[Wanted],
    inputs: Mapping[str, Tensor],
    words: Words | None = None,
) -> tuple[Any, States]:
    """Call a model and take some of its states, pooled at once where the units allow it.

    Args:
        model: What is called: the model, or what it is wrapped in.
        inside: The model itself, in whose layers queries, keys and values are found.
        wanted: What is asked for.
        inputs: Its inputs, each (N, L).
        words: Needed for states of words.

    Returns:
        The model's output without hidden states, and `States`.

    Raises:
        ConfigurationError: The model has not what is asked for.

    Example:
        >>> inputs = bert_tokenizer(["a film"], return_tensors="pt")
        >>> _, states = observe(bert, bert, [Wanted(2, "mean")], inputs)
        >>> states[Wanted(2, "mean")].shape
        torch.Size([1, 32])
    """
    caught: dict[Wanted, list[list[Tensor]]] = {}
    pooled = [want for want in wanted if want.units != RELATIONS]
    with contextlib.ExitStack() as hooks:
        for want in wanted:
            if want.units == RELATIONS:
                parts = find_attention(inside, want.layer)
                caught[want] = [[] for _ in parts]
                for part, calls in zip(parts, caught[want], strict=True):
                    hooks.callback(part.register_forward_hook(functools.partial(_catch, calls)).remove)
        outputs = model(**inputs, **({"output_hidden_states": True} if pooled else {}))
    # DeBERTa asks its projections again, for relative positions: the first calls are those for the tokens.
    states: States = {want: _three([calls[0] for calls in parts]) for want, parts in caught.items()}
    if not pooled:
        return outputs, states
    hidden = getattr(outputs, "hidden_states", None)
    if hidden is None:
        raise ConfigurationError(
            f"{type(inside).__name__} gives no hidden_states, which hidden losses need: leave it out of them (teachers=)."
        )
    states |= {want: _in_units(hidden[want.layer], want.units, inputs, words) for want in pooled}
    return type(outputs)(**{key: value for key, value in outputs.items() if key != "hidden_states"}), states


def _catch(into: list[Tensor], module: nn.Module, args: Any, output: Tensor) -> None:
    into.append(output)


def _three(parts: list[Tensor]) -> tuple[Tensor, ...]:
    found = parts[0].chunk(3, -1) if len(parts) == 1 else tuple(parts)
    if any(part.dim() != 3 for part in found):
        raise ConfigurationError(
            f"minilm_relations: queries of shape {tuple(found[0].shape)} are not padded rows of tokens, as flash attention "
            "packs them: load the model with attn_implementation='sdpa'."
        )
    return found


def _in_units(state: Tensor, units: str, inputs: Mapping[str, Tensor], words: Words | None) -> Tensor:
    if units == "tokens":
        return state
    if units == "words":
        assert words is not None, "words were asked for, and the batch has none"
        return pool_words(state, words.word_of, words.count)[0]
    return (masked_mean if units == "mean" else first_token)(state, token_mask(inputs))


def token_mask(inputs: Mapping[str, Tensor]) -> Tensor:
    """(N, L) bool, True at tokens.

    Raises:
        ConfigurationError: The tokenizer makes no mask.
    """
    if "attention_mask" not in inputs:
        raise ConfigurationError(
            "Hidden losses have to know which tokens are padding, but a batch has no attention_mask: let the tokenizer "
            "make one (model_input_names)."
        )
    return inputs["attention_mask"].bool()


def find_attention(model: nn.Module, layer: int) -> list[nn.Module]:
    """The modules that make a layer's queries, keys and values: three, or one that makes them side by side.

    They are found by their names, so an adapter in their place counts as they do. What they give is the same whatever
    attention implementation works on it, and is taken before rotary positions are applied.

    Args:
        model: The model, with or without a head or adapter.
        layer: Its number, from 1.

    Raises:
        ConfigurationError: There are no such modules, or several.

    Example:
        >>> [module.out_features for module in find_attention(bert, 1)]
        [32, 32, 32]
    """
    what = type(without_adapter(model)).__name__
    total = model.config.num_hidden_layers
    if not 1 <= layer <= total:
        raise ConfigurationError(
            f"minilm_relations: {what} has attention in the layers 1 to {total}, not in layer {layer}; choose others."
        )
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == total}
    lists = {n: m for n, m in lists.items() if not any(n.startswith(f"{other}.") for other in lists)}
    advice = "choose another loss, or name the teachers it is for (teachers=)."
    if len(lists) != 1:
        found = "no list" if not lists else f"{len(lists)} lists ({', '.join(lists)})"
        raise ConfigurationError(
            f"minilm_relations: {what} has {found} of {total} layers, so nothing says which layer {layer} is: {advice}"
        )
    (stack,) = lists.values()
    named: dict[str, list[nn.Module]] = {}
    for name, module in stack[layer - 1].named_modules():
        named.setdefault(name.rpartition(".")[2], []).append(module)
    for names in (*_SEPARATE, *((name,) for name in _FUSED)):
        if all(len(named.get(name, [])) == 1 for name in names):
            return [named[name][0] for name in names]
    raise ConfigurationError(
        f"minilm_relations: layer {layer} of {what} has no query, key and value projections under a known name, or "
        f"several of them: {advice}"
    )
