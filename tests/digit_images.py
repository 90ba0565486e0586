"""Tiny checkpoints of images and scikit-learn's digits, 8 x 8 pixels, for their tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_digits
from transformers import (
    ConvNextImageProcessorPil,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from hf_distill import TASKS

LABELS = ("zero", "one", "two")
TASK = TASKS["image-classification"]


def digit_rows(count: int, start: int = 0) -> datasets.Dataset:
    """Raw rows of images of zeros, ones and twos, with a ClassLabel."""
    digits = load_digits()
    kept = np.flatnonzero(digits.target < len(LABELS))[start : start + count]
    images = [Image.fromarray((digits.images[i] * 15).astype(np.uint8)) for i in kept]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(LABELS))}
    )
    rows = {"image": images, "label": digits.target[kept].tolist()}
    return datasets.Dataset.from_dict(rows, features=features)


def make_vit(labels: Any, size: int = 16) -> tuple[Any, Any]:
    """A tiny ViT for images of so many pixels, and its processor."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=size, patch_size=8,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **TASK.head(labels),
    )  # fmt: skip
    processor = ViTImageProcessorPil(size={"height": size, "width": size})
    return ViTForImageClassification(config).eval(), processor


def make_resnet(labels: Any, seed: int = 1) -> tuple[Any, Any]:
    """A tiny ResNet for images of 12 pixels, and its processor."""
    torch.manual_seed(seed)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **TASK.head(labels)
    )
    processor = ConvNextImageProcessorPil(size={"shortest_edge": 12}, crop_pct=1.0)
    return ResNetForImageClassification(config).eval(), processor


def image_checkpoints(folder: Path, student: tuple[Any, Any] | None = None) -> dict[str, str]:
    """Two teachers of other architectures, processors, sizes and label orders, and a student."""
    made = {
        "vit": make_vit(["two", "Zero", "one"]),
        "resnet": make_resnet(LABELS),
        "student": student or make_resnet(LABELS, seed=2),
    }
    for name, (model, processor) in made.items():
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return {name: str(folder / name) for name in made}


def image_recipe(folder: Path, checkpoints: dict[str, str], **sections: Any) -> Path:
    """A recipe over parquet files of digits."""
    for split, (count, start) in {"train": (48, 0), "validation": (24, 48), "test": (24, 72)}.items():
        digit_rows(count, start).to_parquet(folder / f"{split}.parquet")
    recipe = {
        "task": "image-classification",
        "data": {"files": {split: str(folder / f"{split}.parquet") for split in ("train", "validation", "test")}},
        "teachers": {"models": [checkpoints["vit"], checkpoints["resnet"]], "cache_dir": str(folder / "cache")},
        "student": {"model": checkpoints["student"]},
        "training": {
            "output_dir": str(folder / "run"), "use_cpu": True, "max_steps": 4, "per_device_train_batch_size": 8,
            "learning_rate": 0.01, "report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False,
        },
        "evaluation": {"seeds": 1},
    }  # fmt: skip
    for name, own in sections.items():
        recipe[name] = {**recipe.get(name, {}), **own}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path
