"""The projections of BLIP's attentions under the names that the adapters of ``pruning.projections`` know.

The vision encoder's (``qkv``, ``projection``) are laid out like timm's, each of NLVR2's two cross-attentions
like BERT's.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import Tensor

from smarttrim_cli.pruning.projections import BertProjections, TimmProjections


def vision_projections(attention: Any) -> TimmProjections:
    """Of a ``BlipAttention``."""
    return TimmProjections(
        SimpleNamespace(
            qkv=attention.qkv,
            proj=attention.projection,
            q_norm=_same,
            k_norm=_same,
            num_heads=attention.num_heads,
            head_dim=attention.head_dim,
            scale=attention.scale,
            attn_drop=attention.dropout,
        )
    )


def twin_projections(attention: Any, number: int) -> BertProjections:
    """Of one of the two attentions, 0 or 1, of a ``TwinCrossAttention``."""
    inner = getattr(attention, f"self{number}")
    dense = getattr(attention.output, f"dense{number}")
    return BertProjections(SimpleNamespace(self=inner, output=SimpleNamespace(dense=dense)))


def _same(x: Tensor) -> Tensor:
    return x
