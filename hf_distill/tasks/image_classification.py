"""One of C classes for every image.

Shapes: N rows, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..rows.content import Content
from ..rows.images import IMAGES
from .text_classification import TextClassification


@dataclass(frozen=True)
class ImageClassification(TextClassification):
    """The task ``image-classification``; what a label is, and what follows from one, is as for one class of several of a text.

    Example:
        >>> ImageClassification().auto_class
        'AutoModelForImageClassification'
    """

    name: str = "image-classification"
    pipeline: str = "image-classification"
    auto_class: str = "AutoModelForImageClassification"
    architecture: str = "ForImageClassification"
    peft_type: str | None = None
    content: Content = IMAGES
    text_columns: tuple[str, ...] = ("image",)
