"""Models that are not of transformers, as teachers and student: the ResNets for CIFAR-10 of He et al. 2016.

    python recipes/cifar_resnets.py            # makes the folders that recipes/local_cifar10.yaml names
    python recipes/cifar_resnets.py --compare  # and compares what they answer with plain PyTorch, on the test rows

A class of `PreTrainedModel` around a plain module, a config, and `register`, which a recipe names: the same is the way for a model of
timm or torchvision. Reads ../shared/data/weights/resnetN-cifar10, writes runs/teachers/cifar10/resnetN.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput


class Block(nn.Module):
    """Two convolutions and a shortcut that takes every second pixel and fills new channels with zeros (option A)."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.stride = 1 if before == width else 2
        self.conv1 = nn.Conv2d(before, width, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.added = (width - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) to (B, width, H / stride, W / stride)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added, self.added))
        return F.relu(y + short)


class CifarResNet(nn.Module):
    """ResNet-N of 3 stages for images of 32 x 32: pixels (B, 3, 32, 32) in, logits (B, C) out."""

    def __init__(self, depth: int, labels: int, width: int = 16) -> None:
        super().__init__()
        blocks, widths = (depth - 2) // 6, (width, 2 * width, 4 * width)
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        for stage, (before, own) in enumerate(zip((width, *widths), widths, strict=False), 1):
            made = [Block(before if i == 0 else own, own) for i in range(blocks)]
            self.add_module(f"layer{stage}", nn.Sequential(*made))
        self.linear = nn.Linear(widths[-1], labels)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


# ---- What makes it a model of transformers ----


class CifarResNetConfig(PreTrainedConfig):
    """How deep and wide it is."""

    model_type = "cifar_resnet"

    def __init__(self, depth: int = 20, width: int = 16, image_size: int = 32, **options: Any) -> None:
        super().__init__(**options)
        self.depth, self.width, self.image_size, self.num_channels = depth, width, image_size, 3


class CifarResNetForImageClassification(PreTrainedModel):
    """The plain module inside, ``pixel_values`` in, `ImageClassifierOutput` out."""

    config_class = CifarResNetConfig
    base_model_prefix = "net"
    main_input_name = "pixel_values"

    def __init__(self, config: CifarResNetConfig) -> None:
        super().__init__(config)
        self.net = CifarResNet(config.depth, config.num_labels, config.width)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        """See `ImageClassifierOutput`."""
        logits = self.net(pixel_values)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


def register() -> None:
    """Tell the auto classes; as often as one likes."""
    AutoConfig.register(CifarResNetConfig.model_type, CifarResNetConfig, exist_ok=True)
    AutoModelForImageClassification.register(
        CifarResNetConfig, CifarResNetForImageClassification, exist_ok=True
    )


# ---- The checkpoints ----


def convert(source: Path, to: Path) -> CifarResNetForImageClassification:
    """Write the weights of a plain checkpoint as a folder that `AutoModelForImageClassification` loads, processor included."""
    from safetensors.torch import load_file
    from transformers import (
        AutoImageProcessor,  # noqa: F401 - what reads the processor back
        ViTImageProcessorPil,
    )

    about = json.loads((source / "config.json").read_text(encoding="utf-8"))
    names = dict(enumerate(about["labels"]))
    config = CifarResNetConfig(
        depth=about["depth"],
        width=about.get("width", 16),
        id2label=names,
        label2id={name: i for i, name in names.items()},
    )
    model = CifarResNetForImageClassification(config).eval()
    model.net.load_state_dict(load_file(source / "model.safetensors"), strict=True)
    model.save_pretrained(to)
    processor = ViTImageProcessorPil(
        do_resize=False, size={"height": 32, "width": 32}, image_mean=about["normalize_mean"], image_std=about["normalize_std"]
    )  # fmt: skip
    processor.save_pretrained(to)
    return model


def compare(folders: dict[str, Path], data: Path, weights: Path) -> None:
    """Print the accuracy of each on the test rows: by plain PyTorch, and through `evaluate_ensemble`."""
    import io

    import datasets
    import numpy as np
    from PIL import Image
    from safetensors.torch import load_file

    from hf_distill import evaluate_ensemble

    rows = datasets.load_dataset("parquet", data_files=str(data / "test.parquet"), split="train")
    meta = json.loads((data / "meta.json").read_text(encoding="utf-8"))
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in rows["image"][:]])
    labels = torch.tensor(rows["label"][:])
    report = evaluate_ensemble(
        list(map(str, folders.values())),
        rows.cast_column("label", datasets.ClassLabel(names=meta["labels"])),
        task="image-classification",
        metrics=["accuracy", "nll"],
        batch_size=100,
    )
    for name in folders:
        about = json.loads((weights / f"{name}-cifar10" / "config.json").read_text(encoding="utf-8"))
        plain = CifarResNet(about["depth"], len(about["labels"])).eval()
        plain.load_state_dict(load_file(weights / f"{name}-cifar10" / "model.safetensors"), strict=True)
        mean, std = (torch.tensor(about[key]).view(3, 1, 1) for key in ("normalize_mean", "normalize_std"))
        right = 0
        with torch.inference_mode():
            for start in range(0, len(pixels), 100):
                part = torch.from_numpy(pixels[start : start + 100]).permute(0, 3, 1, 2).float() / 255
                right += int((plain((part - mean) / std).argmax(1) == labels[start : start + 100]).sum())
        own = report.systems[f"teacher:{name}"].metrics["accuracy"]
        print(
            f"{name}: plain PyTorch {right / len(pixels):.4f}, through hf_distill {own:.4f}, difference {own - right / len(pixels):+.4f}"
        )
    together = report.systems["ensemble"].metrics
    print(
        f"linear_pool of the {len(folders)}: accuracy {together['accuracy']:.4f}, nll {together['nll']:.4f}"
    )


def main() -> None:
    """Convert, and compare where that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 32, 44, 56])
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=Path("runs/teachers/cifar10"))
    options = parser.parse_args()
    folders = {f"resnet{depth}": options.output / f"resnet{depth}" for depth in options.depths}
    for name, folder in folders.items():
        convert(options.data / "weights" / f"{name}-cifar10", folder)
        print(folder)
    if options.compare:
        compare(folders, options.data / "cifar10_24k", options.data / "weights")


register()
if __name__ == "__main__":
    main()
