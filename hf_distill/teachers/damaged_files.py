"""Whether a model's weights are all there and whole, as their headers tell, before minutes of loading find out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError, in_a_line

_INDEX = "model.safetensors.index.json"
# Heads, and what stands between a body and its head: a language model's checkpoint has none.
_OF_HEADS = re.compile(r"(^|\.)(pooler|classifier|score|qa_outputs|lm_head|cls)(\.|$)")


def refuse_damaged_files(id_or_path: str, what: str) -> None:
    """Refuse a folder whose index names files that are not there, or a file that is shorter or longer than it says.

    Args:
        id_or_path: Hub id or folder; of a Hub id nothing is looked at, as its files were checked when they came.
        what: Who it is for, for messages: "Teacher 'bert'".

    Raises:
        DataError: It is so.
    """
    folder = Path(id_or_path)
    if not folder.is_dir():
        return
    files = [folder / "model.safetensors"]
    if not files[0].is_file():
        files = _shards(folder, what)
    for file in files:
        if file.is_file():
            refuse_cut(file, what)


def _shards(folder: Path, what: str) -> list[Path]:
    path = folder / _INDEX
    if not path.is_file():
        return []
    try:
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
        shards = [folder / name for name in sorted(names)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{what}: {path} cannot be read as an index of weights ({type(error).__name__}: {in_a_line(error, 100)}): copy "
            "it again."
        ) from error
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise DataError(
            f"{what}: {folder} lacks {len(missing)} of the {len(shards)} files that {_INDEX} names, {missing[0]} first: "
            "copy them too."
        )
    return shards


def refuse_cut(file: Path, what: str) -> None:
    """Refuse a safetensors file that was not written to its end, or had something added to it.

    It is 8 bytes, as many of a header as they say, and tensors up to the last end in the header.

    Args:
        file: It is there.
        what: Who it is for, for messages.

    Raises:
        DataError: It is so.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length)) if 2 <= length <= size - 8 else None
        if header is None:
            raise ValueError(f"its header would be {length} bytes")
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise DataError(
            f"{what}: {file} is no whole safetensors file ({size} bytes; {in_a_line(error, 100)}): copy or save it again."
        ) from error
    if size != expected:
        raise DataError(
            f"{what}: {file} has {size} bytes, expected {expected} by its own header, so it is cut or damaged: copy or "
            "save it again."
        )


def refuse_gaps(
    missing: Iterable[str], unexpected: Iterable[str], names: Iterable[str], prefix: str, what: str
) -> None:
    """Refuse weights without a part of the body, which would be drawn at random, or with layers that the config drops.

    Args:
        missing: Names of the model's parameters that the files lack.
        unexpected: Names in the files that the model lacks.
        names: Of all parameters of the model.
        prefix: How the body's names begin; empty where they do not.
        what: Who it is, for messages.

    Raises:
        DataError: It is so.
    """
    body = [name for name in missing if name.startswith(f"{prefix}.") and not _OF_HEADS.search(name)]
    if prefix and body:
        raise DataError(
            f"{what}: its weights lack {len(body)} parameter(s) of the model that config.json describes, e.g. "
            f"{min(body)}: copy the weights again, or correct config.json."
        )
    kept = {re.sub(r"\.\d+\.", ".#.", name) for name in names}
    kept |= {name.removeprefix(f"{prefix}.") for name in kept}
    layers = [n for n in unexpected if re.search(r"\.\d+\.", n) and re.sub(r"\.\d+\.", ".#.", n) in kept]
    if layers:
        raise DataError(
            f"{what}: its weights hold layers that config.json does not count, e.g. {min(layers)}: copy config.json again, "
            "or correct its number of layers."
        )


def impossible_sizes(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Sizes in a config that no model can have, each with what is wrong with it.

    Args:
        config: Its keys and values.

    Example:
        >>> impossible_sizes({"n_layers": 0, "dim": 10**11, "vocab_size": 30522})
        [('n_layers', 'expected a whole number from 1, found 0'), ('dim', 'expected at most 100,000,000, found 100000000000')]
    """
    wrong = []
    for key, value in config.items():
        if isinstance(value, bool) or not isinstance(value, int) or not _SIZE.search(key):
            continue
        if value < 1 and not (value == 0 and key == "type_vocab_size"):
            wrong.append((key, f"expected a whole number from 1, found {value}"))
        elif value > _LARGEST:
            wrong.append((key, f"expected at most {_LARGEST:,}, found {value}"))
    return wrong


# Ten times the longest context that anybody has published, and far more than any vocabulary or width.
_LARGEST = 100_000_000
# How configs call their sizes: n_layers, num_hidden_layers, encoder_layers, dim, hidden_dim, hidden_size, d_model, n_heads…
_SIZE = re.compile(
    r"^(n_layers?|n_heads?|n_embd|n_inner|n_positions|n_ctx|dim|hidden_dim|d_model|d_ff|d_kv|d_inner|d_head|vocab_size"
    r"|type_vocab_size|max_position_embeddings|hidden_size|intermediate_size|embedding_size|head_dim"
    r"|num_(hidden_)?layers|num_attention_heads|num_heads|num_key_value_heads"
    r"|(encoder|decoder)_(layers|attention_heads|ffn_dim))$"
)
