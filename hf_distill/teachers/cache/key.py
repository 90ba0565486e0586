"""Which teacher a folder holds, known again by the bytes of its files: no model is loaded to find that out.

Loading a teacher only to compute its key would make the peak memory of cached training that of the largest teacher.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import transformers
import xxhash

from ..teacher import TeacherSpec

# What `from_pretrained` reads of a folder: config, tokenizer, weights.
_READ = {".json", ".safetensors", ".txt", ".model", ".jinja"}


def folder_identity(spec: TeacherSpec, facts: Any) -> str | None:
    """Hash of all files that decide a teacher, and of how it is asked for.

    Args:
        spec: The teacher.
        facts: What else decides its key.

    Returns:
        None where files elsewhere decide too: for Hub ids, folders of an adapter whose base is not named, and remote code.
    """
    folders = [Path(spec.id_or_path), *([Path(spec.adapter)] if spec.adapter else [])]
    if not all(folder.is_dir() for folder in folders) or spec.trust_remote_code:
        return None
    if (folders[0] / "adapter_config.json").exists():
        return None
    digest = xxhash.xxh3_128()
    asked = {k: str(v) for k, v in asdict(spec).items() if k not in ("id_or_path", "adapter", "name")}
    digest.update(json.dumps([transformers.__version__, asked, facts], sort_keys=True, default=str).encode())
    for number, folder in enumerate(folders):
        for path in sorted(path for path in folder.iterdir() if path.suffix in _READ and path.is_file()):
            digest.update(f"{number} {path.name} {path.stat().st_size}".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def recall(cache_dir: str | os.PathLike[str], identity: str | None) -> dict[str, Any] | None:
    """What was remembered under an identity; None where nothing was, or nothing readable."""
    if identity is None:
        return None
    try:
        return json.loads((Path(cache_dir) / f"folder-{identity}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def remember(cache_dir: str | os.PathLike[str], identity: str | None, teacher: Mapping[str, Any]) -> None:
    """Keep what is to be recalled; where that cannot be written, the teacher is loaded again next time."""
    if identity is None:
        return
    with contextlib.suppress(OSError):
        path = Path(cache_dir) / f"folder-{identity}.json"
        unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
        unfinished.write_text(json.dumps(teacher, sort_keys=True), encoding="utf-8")
        unfinished.replace(path)
