"""Layers that BLIP has and transformers' BLIP has not: NLVR2's cross-attention to two images, and the heads.

Names are those of the official ``models/nlvr_encoder.py`` and ``models/blip_nlvr.py``. Every text layer
attends to both images with weights of its own (``self0``/``dense0`` and ``self1``/``dense1``); lower layers
average the two results, higher ones merge them by a linear layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BlipTextConfig
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention


class TwinOutput(nn.Module):
    """Output projections of both attentions, their combination, dropout and norm."""

    def __init__(self, config: BlipTextConfig, merge: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.dense0 = nn.Linear(width, width)
        self.dense1 = nn.Linear(width, width)
        self.merge_layer = nn.Linear(2 * width, width) if merge else None

    def combine(self, first: Tensor, second: Tensor) -> Tensor:
        """Projected results of both attentions as one."""
        if self.merge_layer is None:
            return (first + second) / 2
        return self.merge_layer(torch.cat((first, second), -1))


class TwinCrossAttention(nn.Module):
    """Cross-attention to two memories; takes the place of a layer's ``crossattention``."""

    def __init__(self, config: BlipTextConfig, merge: bool) -> None:
        super().__init__()
        self.self0 = BlipTextSelfAttention(config, is_cross_attention=True)
        self.self1 = BlipTextSelfAttention(config, is_cross_attention=True)
        self.output = TwinOutput(config, merge)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=config.initializer_range)
                nn.init.zeros_(module.bias)


def classifier(width: int, num_labels: int) -> nn.Sequential:
    """``cls_head`` of the official NLVR2 model."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, num_labels))
