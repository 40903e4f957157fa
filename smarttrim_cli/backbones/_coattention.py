"""METER's co-attention layer with its parameter names (``bert_model.BertCrossLayer`` of the official code).

Order: self-attention, cross-attention (queries from this modality, keys and values from the other),
feed-forward; each with a residual and a LayerNorm behind it (eps 1e-12), erf GELU.
Legend: B batch, N tokens of this modality, M tokens of the other, D width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class _Projections(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.num_attention_heads = heads
        self.attention_head_size = width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)


class _Output(nn.Module):
    """``dense``, dropout, residual, ``LayerNorm``."""

    def __init__(self, inner: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(hidden)) + residual)


class _Intermediate(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, inner)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.gelu(self.dense(hidden))


class CoAttention(nn.Module):
    """Self- or cross-attention with its output block, shaped like Hugging Face's ``BertAttention``."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.self = _Projections(width, heads, dropout)
        self.output = _Output(width, width, dropout)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """(B, N, D); ``attention_mask`` is boolean, True where a key may be seen."""
        p = self.self
        memory = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            linear(x).unflatten(-1, (p.num_attention_heads, -1)).transpose(1, 2)
            for linear, x in ((p.query, hidden_states), (p.key, memory), (p.value, memory))
        )
        dropout = p.dropout.p if self.training else 0.0
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask, dropout_p=dropout)
        return self.output(context.transpose(1, 2).flatten(2), hidden_states), None


class CoAttentionLayer(nn.Module):
    """One side of a co-attention pair."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.attention = CoAttention(width, heads, dropout)
        self.crossattention = CoAttention(width, heads, dropout)
        self.intermediate = _Intermediate(width, inner)
        self.output = _Output(inner, width, dropout)

    def forward(
        self, hidden: Tensor, memory: Tensor, mask: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> Tensor:
        """One modality (B, N, D) attends to itself and to the other, (B, M, D)."""
        hidden, _ = self.attention(hidden, mask)
        hidden, _ = self.crossattention(hidden, memory_mask, memory)
        return self.output(self.intermediate(hidden), hidden)


class Pooler(nn.Module):
    """tanh of a projection of the CLS token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, cls_BD: Tensor) -> Tensor:
        return self.dense(cls_BD).tanh()
