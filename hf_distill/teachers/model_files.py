"""What a model's files may say before anything of them is loaded: weights in their own folder, as safetensors, no code.

A folder may come from anybody. Its weights are looked at by name and by their first bytes, its configs as text.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from ..errors import DataError, UnsafeFileError, in_a_line

INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
_CONFIG, _WEIGHTS, _ADAPTER_WEIGHTS = "config.json", "model.safetensors", "adapter_model.safetensors"
_READ = (_CONFIG, INDEX, ADAPTER)
# What the safetensors library itself bears.
_LONGEST_HEADER = 100_000_000
_CONVERT = (
    "other formats can run code when read and are refused. Convert it once where you trust it (load, then "
    "save_pretrained) and use the result"
)


def refuse_unsafe_files(
    id_or_path: str, what: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> None:
    """Refuse a model whose files point elsewhere, are no safetensors, or ask for code; nothing of it is loaded before.

    A folder that is a link itself is fine, and so are the links of the Hub's cache into its blobs.

    Args:
        id_or_path: Hub id or folder, of a model or of an adapter.
        what: Who it is for, for messages: "Teacher 'bert'".
        revision: Of the Hub repository.
        trust_remote_code: Whether its code was asked for; kernels are then too.

    Raises:
        UnsafeFileError: It is so.
        DataError: A config or an index is no JSON.
    """
    folder = Path(id_or_path)
    if not folder.is_dir():
        found = _snapshot(id_or_path, revision)
        if found is None:
            return
        folder = found
    where = f"{what}: {id_or_path}"
    config, adapter = _mapping(folder / _CONFIG, where), _mapping(folder / ADAPTER, where)
    if not trust_remote_code:
        _refuse_code(config, f"{where}/{_CONFIG}")
    if adapter.get("megatron_config") is not None:
        raise UnsafeFileError(
            f"{where}/{ADAPTER}: megatron_config has a module imported by its name, "
            f"{adapter.get('megatron_core')!r}, and nothing was: train the adapter without it."
        )
    for file in _weights(folder, config, where):
        _refuse_outside(folder, file, where)
        if file.suffix != ".safetensors":
            raise UnsafeFileError(f"{where}: its weights are in {file.name!r}; {_CONVERT}.")
        if file.is_file():
            _refuse_header(file, where)
    if adapter and not (folder / _ADAPTER_WEIGHTS).is_file():
        raise UnsafeFileError(f"{where} holds no {_ADAPTER_WEIGHTS}; {_CONVERT}.")
    base = adapter.get("base_model_name_or_path")
    # A folder may name itself; transformers finds out.
    if isinstance(base, str) and Path(base).is_dir() and not (Path(base) / ADAPTER).exists():
        refuse_unsafe_files(base, what, trust_remote_code=trust_remote_code)


def _snapshot(repo: str, revision: str | None) -> Path | None:
    """The folder of the Hub's cache that a model will be loaded from, with its configs and its index in it."""
    found = None
    for name in _READ:
        try:
            path = cached_file(repo, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        except (OSError, ValueError):  # no id, no such repository, no way to it: whoever loads it says so
            return found
        found = Path(path).parent if path is not None else found
    return found


def _mapping(path: Path, where: str) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{where}: {path.name} cannot be read: {in_a_line(error, 200)}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{where}: {path.name} holds a {type(content).__name__}, expected a mapping.")
    return content


def _weights(folder: Path, config: Mapping[str, Any], where: str) -> Iterator[Path]:
    """Every file that weights would be read from, there or not."""
    named = config.get("transformers_weights")
    indices = [INDEX]
    if named is not None:
        if not isinstance(named, str):
            raise DataError(
                f"{where}: transformers_weights of {_CONFIG} is {named!r}, expected a file's name."
            )
        if named.endswith(".index.json"):
            indices.append(named)
        else:
            yield folder / named
    for name in (_WEIGHTS, _ADAPTER_WEIGHTS):
        if (folder / name).is_file() or (folder / name).is_symlink():
            yield folder / name
    for name in indices:
        _refuse_outside(folder, folder / name, where)
        index = _mapping(folder / name, where)
        if not index:
            continue
        files = index.get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
            raise DataError(f"{where}: {name} has no weight_map of names and files.")
        yield from (folder / file for file in dict.fromkeys(files.values()))


def _refuse_outside(folder: Path, file: Path, where: str) -> None:
    home = folder.resolve()
    real = file.resolve()
    if real.is_relative_to(home):
        return
    # models--org--name/snapshots/COMMIT/FILE -> models--org--name/blobs/HASH
    if home.parent.name == "snapshots" and real.parent == home.parent.parent / "blobs":
        return
    shown = file.relative_to(folder) if file.is_relative_to(folder) else file
    raise UnsafeFileError(
        f"{where}: {shown} lies outside of the folder, in {real}: weights are read from a model's own folder alone. If "
        "they are yours, copy them into it."
    )


def _refuse_header(file: Path, where: str) -> None:
    """Refuse what is called safetensors and is not, or whose header would fill the memory."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        first = opened.read(9)
    length = struct.unpack("<Q", first[:8])[0] if len(first) == 9 else 0
    if first[8:] != b"{" or length > min(_LONGEST_HEADER, size - 8):
        raise UnsafeFileError(
            f"{where}: {file.name} is no whole safetensors file ({size:,} bytes, of which its header would be {length:,}, "
            f"at most {_LONGEST_HEADER:,}); nothing of it was read. Fetch it again, or save the model again."
        )


def _refuse_code(config: Mapping[str, Any], where: str) -> None:
    """Refuse a config that has code fetched: kernels out of a repository, in it or in a config within."""
    for key, value in config.items():
        names_kernels = key.removesuffix("_internal").endswith("_implementation")
        if isinstance(value, Mapping) and not names_kernels:
            _refuse_code(value, where)
            continue
        named = list(value.values()) if isinstance(value, Mapping) else [value]
        kernels = names_kernels and any(isinstance(name, str) and "/" in name for name in named)
        if kernels or (key in ("use_kernels", "kernel_config") and value):
            raise UnsafeFileError(
                f"{where}: {key} is {value!r}, which fetches and runs the code of a repository: nothing was. Remove it, or "
                "pass trust_remote_code where you have read that code."
            )
