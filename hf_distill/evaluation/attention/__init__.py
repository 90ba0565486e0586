"""What student and teachers attend to, and how alike their layers are: numbers and pictures.

Layers are numbered as in ``hidden_states``: 0 is what the embeddings give, i what layer i gives, so a model of L layers has
attention in the layers 1 to L. Heads are counted from 1 too.
"""

from __future__ import annotations

from .maps import AttentionMaps, attention_maps, eager_attention, read_attention, switched_to_eager
from .pictures import attention_rows, plot_attention, plot_similarity, similarity_figure
from .similarity import LayerSimilarity, compare_layers, layer_similarity, pooled_states

__all__ = [
    "AttentionMaps",
    "LayerSimilarity",
    "attention_rows",
    "attention_maps",
    "compare_layers",
    "eager_attention",
    "layer_similarity",
    "plot_attention",
    "plot_similarity",
    "pooled_states",
    "read_attention",
    "similarity_figure",
    "switched_to_eager",
]
