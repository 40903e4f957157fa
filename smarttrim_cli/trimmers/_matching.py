"""Merging tokens in pairs: bipartite matching as in ToMe (Bolya et al. 2023, section 3).

The tokens of a row alternate between two sets by their order: A has columns 0, 2, 4, ... (the CLS among them,
which never merges), B has columns 1, 3, 5, ... A token of A may be merged into the token of B that is most
similar to it.

Legend: R rows of a batch, N columns, A and B the sizes of the sets, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def similarity(metric_RND: Tensor) -> Tensor:
    """Cosine similarity (R, A, B) of the tokens of A with those of B."""
    unit_RND = functional.normalize(metric_RND, dim=-1)
    return unit_RND[:, ::2] @ unit_RND[:, 1::2].transpose(1, 2)


def partners(similarity_RAB: Tensor, targets_RB: Tensor) -> tuple[Tensor, Tensor]:
    """Similarity (R, A) to the most similar target, and which of B it is; -2 where there is no target."""
    if similarity_RAB.shape[2] == 0:
        nothing_RA = similarity_RAB.new_full(similarity_RAB.shape[:2], -2.0)
        return nothing_RA, torch.zeros_like(nothing_RA, dtype=torch.long)
    best = similarity_RAB.masked_fill(~targets_RB.unsqueeze(1), -2.0).max(2)
    return best.values, best.indices


def merge(tokens_RND: Tensor, merged_RA: Tensor, partner_RA: Tensor) -> Tensor:
    """Tokens (R, N, D) in which every target is the mean of itself and what merges into it.

    Args:
        tokens_RND: The tokens; those that merge are left where they are.
        merged_RA: Boolean, the tokens of A that merge.
        partner_RA: The token of B that each merges into.
    """
    own_RBD = tokens_RND[:, 1::2]
    if own_RBD.shape[1] == 0:
        return tokens_RND
    given_RAD = tokens_RND[:, ::2].masked_fill(~merged_RA.unsqueeze(-1), 0.0)
    sums_RBD = own_RBD.scatter_add(1, partner_RA.unsqueeze(-1).expand_as(given_RAD), given_RAD)
    sizes_RB = torch.ones_like(own_RBD[..., 0]).scatter_add(1, partner_RA, merged_RA.to(own_RBD.dtype))
    out_RND = tokens_RND.clone()
    out_RND[:, 1::2] = sums_RBD / sizes_RB.unsqueeze(-1)
    return out_RND


def matched(similarity_RAB: Tensor, sources_RA: Tensor, targets_RB: Tensor) -> tuple[Tensor, Tensor]:
    """What :func:`merge` needs when ``sources`` are to merge into their most similar ``targets``.

    Where a row has no target, nothing merges.
    """
    best_RA, partner_RA = partners(similarity_RAB, targets_RB)
    return sources_RA & (best_RA > -2.0), partner_RA
