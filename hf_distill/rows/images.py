"""Rows of images, which every model reads through its own image processor, and what may be done to them at random before.

A prepared row keeps the image's file, as it came; what is read and changed of it is kept for as long as a batch is made, so that
student and teachers share it.

Shapes: B rows of a batch.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import ConfigurationError, DataError, in_a_line
from .columns import Columns, Ragged
from .content import Content, hashed
from .trying import try_model
from .views import View, named_inputs

# Images that are read are kept until as many others were: a batch is read by one view after another.
_KEPT = 256
# Another name than a raw column has: `datasets` would take its type over.
_FILE = "image_file"


@functools.lru_cache(_KEPT)
def read_image(file: bytes) -> Image.Image:
    """The pixels of an image file, as pipelines of `transformers` see them: upright, in RGB.

    Raises:
        ValueError: It is no image.
    """
    try:
        return ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert("RGB")
    except Exception as error:  # decoders raise whatever a broken file makes them
        raise ValueError(f"found {len(file)} bytes that are no image ({in_a_line(error, 100)})") from error


def image_file(value: Any) -> bytes:
    """The file of an image, however it is given.

    Args:
        value: A PIL image, bytes, a path, an array (height, width, 3) of whole numbers, or what `datasets` stores of an image.

    Raises:
        ValueError: It is no image.
    """
    if isinstance(value, dict) and {"bytes", "path"} & value.keys():
        value = value.get("bytes") or value.get("path")
    if isinstance(value, (str, os.PathLike)):
        try:
            value = Path(value).read_bytes()
        except OSError as error:
            raise ValueError(
                f"found {str(value)!r}, which cannot be read ({in_a_line(error, 100)})"
            ) from error
    if isinstance(value, (bytes, bytearray)):
        read_image(bytes(value))
        return bytes(value)
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim in (2, 3):
        value = Image.fromarray(value)
    if not isinstance(value, Image.Image):
        shown = repr(value)
        raise ValueError(f"found {shown if len(shown) <= 60 else shown[:60] + '…'}, expected an image")
    written = io.BytesIO()
    ImageOps.exif_transpose(value).convert("RGB").save(written, "png", compress_level=1)
    return written.getvalue()


@dataclass(frozen=True)
class Images(Content):
    """One image per row.

    Example:
        >>> from PIL import Image
        >>> file = IMAGES.read(Image.new("RGB", (4, 2)))
        >>> IMAGES.told([file]), IMAGES.example_id([file]) == IMAGES.example_id([IMAGES.read(read_image(file))])
        (('image of 4 x 2 pixels',), True)
    """

    name: str = "images"
    keys: tuple[str, ...] = ("image",)
    processor_class: str | None = "AutoImageProcessor"

    def read(self, value: Any) -> bytes:
        """The image's file, see `image_file`.

        Raises:
            ValueError: It is no image.
        """
        return image_file(value)

    def example_id(self, row: Sequence[bytes]) -> int:
        """63 bits of a hash of the pixels: the same picture in another file is the same row."""
        image = read_image(row[0])
        return hashed(repr(image.size).encode() + image.tobytes())

    def open_view(self, model: Any, processor: Any, max_length: int | None, *, what: str) -> View:
        """An `ImageView`, once the model was run over one image.

        Raises:
            ConfigurationError: A length is asked for.
            DataError: The processor is none of images, or makes what the model cannot take.
        """
        if max_length is not None:
            raise ConfigurationError(
                f"{what}: max_length is {max_length}, but images have no length: leave it out."
            )
        view = self.plain_view(processor, None, what=what)
        if "pixel_values" not in named_inputs(model):
            raise DataError(
                f"{what}: {type(model).__name__} reads no images (its forward has no pixel_values)."
            )
        try_model(model, view, view.made_up(1), f"{what}: a forward of one image")
        return view

    def plain_view(self, processor: Any, max_length: int | None, *, what: str = "The model") -> View:
        """The view of a processor, whatever model reads it.

        Raises:
            DataError: It is none of images.
        """
        if "pixel_values" not in getattr(processor, "model_input_names", ()):
            raise DataError(
                f"{what}: a {type(processor).__name__} is no image processor: pass one of images."
            )
        return ImageView(processor)

    def told(self, row: Sequence[bytes]) -> tuple[str, ...]:
        """The size of an image, all that can be said of it in words."""
        width, height = read_image(row[0]).size
        return (f"image of {width} x {height} pixels",)

    def given(self, text: str) -> bytes:
        """The image at a path."""
        return self.read(text)

    def as_stored(self, dataset: Any, columns: Sequence[str]) -> Any:
        """With the files of images as they are, and not their pixels."""
        for column in columns:
            if isinstance(dataset.features.get(column), datasets.Image):
                dataset = dataset.cast_column(column, datasets.Image(decode=False))
        return dataset

    def file_feature(self) -> Any:
        """Images, in the file itself or by their paths."""
        return datasets.Image()

    def of_file(self, value: Any, folder: str) -> dict[str, Any]:
        """The image's file.

        Raises:
            ValueError: It is no image.
        """
        return {"bytes": image_file(self.other_files(value, folder) or value), "path": None}

    def other_files(self, value: Any, folder: str) -> str | None:
        """The path of the image, from the folder of the file that names it."""
        named = value.get("path") if isinstance(value, dict) and not value.get("bytes") else value
        return str(Path(folder, named)) if isinstance(named, str) else None


IMAGES = Images()
"""What rows of images hold."""


@dataclass(frozen=True, eq=False)
class ImageView(View):
    """An image processor. Teachers whose processors are set alike share their pixels.

    Args:
        processor: An image processor of `transformers`, used as the model's own pipeline uses it.
        augment: What is done to an image before it is processed: ``(image, example_id) -> image``; None: nothing.
    """

    processor: Any
    augment: Callable[[Image.Image, int], Image.Image] | None = None

    @functools.cached_property
    def key(self) -> str:
        """Hash of what the processor does."""
        return hashlib.sha256(
            f"image {type(self.processor).__name__} {self.processor.to_json_string()}".encode()
        ).hexdigest()

    def encode(self, texts: Sequence[Sequence[bytes]]) -> dict[str, list[np.ndarray]]:
        """The images' files, byte by byte."""
        return {_FILE: [np.frombuffer(file, np.uint8) for file in texts[0]]}

    def collate(self, encoded: Columns, example_ids: Tensor) -> dict[str, Tensor]:
        """The pixels of B images, changed where they are to be, and processed.

        Raises:
            DataError: They come out in several sizes.
        """
        files = encoded[_FILE]
        bounds = np.cumsum(files.lengths)[:-1]
        images = [read_image(part.astype(np.uint8).tobytes()) for part in np.split(files.values, bounds)]
        if self.augment is not None:
            images = [self.augment(image, i) for image, i in zip(images, example_ids.tolist(), strict=True)]
        try:
            return dict(self.processor(images, return_tensors="pt"))
        except Exception as error:  # the processor's own code
            sizes = sorted({image.size for image in images})
            if len(sizes) > 1:
                raise DataError(
                    f"The images of a batch have {len(sizes)} sizes ({sizes[0]}, {sizes[1]}…), and {type(self.processor).__name__} "
                    "does not bring them to one: let it resize (do_resize, size), or give images of one size."
                ) from error
            raise DataError(
                f"{type(self.processor).__name__} cannot process images of {sizes[0]} pixels: {in_a_line(error)}."
            ) from error

    def sizes(self, encoded: Columns, rows: int) -> np.ndarray:
        """(B,) as many as there are patches of 16 x 16 in what the model reads, which is the same for all images."""
        pixels = self.collate({_FILE: Ragged.of(self.encode(self.made_up(1))[_FILE])}, torch.zeros(1))
        height, width = pixels["pixel_values"].shape[-2:]
        return np.full(rows, max(1, height * width // 256), np.int64)

    def augmented(self, augment: Callable[[Image.Image, int], Image.Image]) -> View:
        """This view, of images that are changed before they are processed."""
        return replace(self, augment=augment)

    def made_up(self, rows: int) -> list[list[bytes]]:
        """Images of noise, of the size that the processor makes."""
        size = getattr(self.processor, "crop_size", None) or getattr(self.processor, "size", None) or {}
        side = size.get("shortest_edge") or 224
        shape = (size.get("height") or side, size.get("width") or side, 3)
        generator = np.random.default_rng(0)
        return [[image_file(generator.integers(0, 256, shape, np.uint8)) for _ in range(rows)]]


@dataclass(frozen=True)
class Augmentation:
    """Random crops and flips, which student and teachers see alike.

    Args:
        crop: How far the image is moved at most in each direction, black behind it: pixels, or below 1 a share of its sides.
        flip: Whether every second image, at random, is turned left to right.

    Raises:
        ConfigurationError: Neither is asked for, or a crop that leaves nothing.

    Reference:
        A teacher that sees the student's own view of an image: Beyer et al. 2022, arXiv 2106.05237.

    Example:
        >>> from PIL import Image
        >>> Augmentation(crop=4, flip=True)(Image.new("RGB", (32, 32)), np.random.default_rng(0)).size
        (32, 32)
    """

    crop: float = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if not self.crop and not self.flip:
            raise ConfigurationError("augment does nothing without crop and flip: give one, or leave it out.")
        if self.crop < 0:
            raise ConfigurationError(f"augment: crop is {self.crop}, expected pixels, or a share below 1.")

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        """The image as it is seen this once.

        Args:
            image: In RGB.
            generator: Draws how.
        """
        width, height = image.size
        if self.crop:
            far = [round(self.crop * side) if self.crop < 1 else int(self.crop) for side in image.size]
            left, top = (int(generator.integers(-most, most + 1)) for most in far)
            image = image.crop((left, top, left + width, top + height))  # black where there is no image
        if self.flip and generator.random() < 0.5:
            image = ImageOps.mirror(image)
        return image


class SeenThisEpoch:
    """What is done to rows at random, the same to one row whoever asks, and another in every epoch.

    It is drawn from the seed, the epoch and the row's content alone: nothing has to be kept for a training to go on as it would
    have, and no order of rows, processes or workers changes it.

    Args:
        augmentation: ``(image, generator) -> image``, such as `Augmentation`.
        seed: Of the training.
    """

    def __init__(self, augmentation: Callable[[Any, np.random.Generator], Any], seed: int) -> None:
        self.augmentation, self.seed = augmentation, seed
        # In shared memory: a loader's workers, which have a copy of all else, read it when a batch is made.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._seen: dict[tuple[int, int], Any] = {}

    def begin_epoch(self, epoch: int) -> None:
        """An epoch begins.

        Args:
            epoch: Counted from 0.
        """
        self._epoch.fill_(epoch)

    def __call__(self, content: Any, example_id: int) -> Any:
        """The content as it is seen in this epoch."""
        key = (int(self._epoch), example_id)
        if key not in self._seen:
            while len(self._seen) >= _KEPT:
                del self._seen[next(iter(self._seen))]
            self._seen[key] = self.augmentation(content, np.random.default_rng([self.seed, *key]))
        return self._seen[key]


def seen_each_epoch(
    given: Callable[[Any, np.random.Generator], Any] | Mapping[str, Any] | None, seed: int, *, cached: bool
) -> SeenThisEpoch | None:
    """What ``augment=`` means in a training.

    Args:
        given: An augmentation, or the fields of `Augmentation`; None: none.
        seed: Of the training.
        cached: Whether teachers' outputs are to be kept.

    Raises:
        ConfigurationError: There is no such augmentation, or outputs are to be kept.
    """
    if given is None:
        return None
    if cached:
        raise ConfigurationError(
            "augment shows student and teachers another image in every epoch, of which a cache would hold none: let the teachers run "
            "live (leave cache_dir out), or leave augment out."
        )
    return SeenThisEpoch(Augmentation(**given) if isinstance(given, Mapping) else given, seed)
