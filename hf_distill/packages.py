"""How to get packages that are not installed here, in the words of every message that misses one."""

from __future__ import annotations

EXTRAS = {
    "peft": ("peft>=0.21",),
    "onnx": ("onnx>=1.23", "onnxruntime>=1.31", "onnxscript>=0.7"),
    "search": ("optuna>=5",),
    "tensorboard": ("tensorboard>=2.20",),
}
"""What the extras of the package bring, as pyproject.toml has them."""


def install(package: str, *, extra: str | None = None) -> str:
    """Say how a missing package is installed; no index has hf-distill itself, so its extras come from the repository.

    Args:
        package: Its name, for what no extra brings.
        extra: The extra that brings it, where one does.

    Example:
        >>> install("peft", extra="peft")
        "pip install 'peft>=0.21' (or, in the folder of the hf-distill repository, pip install '.[peft]')"
        >>> install("wandb", extra="wandb")
        'pip install wandb'
    """
    if extra not in EXTRAS:
        return f"pip install {package}"
    quoted = " ".join(f"'{requirement}'" for requirement in EXTRAS[extra])
    return f"pip install {quoted} (or, in the folder of the hf-distill repository, pip install '.[{extra}]')"
