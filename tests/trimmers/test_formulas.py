"""Eq. 3-7 written out with loops."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from smarttrim_cli.pruning.stream import begin_masked
from smarttrim_cli.trimmers import cross_modal, global_head
from smarttrim_cli.trimmers.base import SiteInfo, TokenView

B, N, D, GUIDE = 2, 5, 6, 4


@torch.no_grad()
def test_token_scores() -> None:
    torch.manual_seed(0)
    trimmer = cross_modal.build(cross_modal.Options(hidden_dim=8), SiteInfo("vision.0.token", 0, 2, D, GUIDE))
    hidden, guide = torch.randn(B, N, D), torch.randn(B, GUIDE)
    stream = begin_masked(torch.ones(B, N, dtype=torch.bool))
    ids = torch.zeros(B, N, dtype=torch.long)
    found = trimmer(TokenView(hidden, hidden[:, 0], guide, stream, ids))
    for b in range(B):
        g = trimmer.guide(torch.cat((hidden[b, 0], guide[b])))  # Eq. 5
        for n in range(N):
            projected = hidden[b, n] @ trimmer.project.weight.T + trimmer.project.bias  # Eq. 3
            local = trimmer.local(projected)[0]  # Eq. 4
            bilinear = g @ trimmer.key.weight.T @ projected
            assert_close(found[b, n], local + bilinear)


@torch.no_grad()
def test_self_guidance_uses_the_own_cls_alone() -> None:
    torch.manual_seed(0)
    trimmer = cross_modal.build(cross_modal.Options(hidden_dim=8), SiteInfo("text.0.token", 0, 2, D, 0))
    assert trimmer.guide[0].in_features == D
    hidden = torch.randn(B, N, D)
    stream = begin_masked(torch.ones(B, N, dtype=torch.bool))
    found = trimmer(TokenView(hidden, hidden[:, 0], None, stream, torch.zeros(B, N, dtype=torch.long)))
    projected = trimmer.project(hidden[1])
    expected = trimmer.local(projected)[:, 0] + projected @ trimmer.key(trimmer.guide(hidden[1, 0]))
    assert_close(found[1], expected)


def test_widths_from_options() -> None:
    site = SiteInfo("vision.0.token", 0, 2, D, GUIDE)
    default = cross_modal.build(cross_modal.Options(), site)
    assert default.project.out_features == 96 and default.local[0].out_features == 48
    assert cross_modal.build(cross_modal.Options(hidden_dim=1), site).local[0].out_features == 1
    assert cross_modal.build(cross_modal.Options(hidden_dim=8, local_dim=3), site).local[0].out_features == 3


@torch.no_grad()
def test_head_scores_come_from_the_own_cls_for_self_and_from_both_for_cross_attention() -> None:
    torch.manual_seed(0)
    own, guide, ids = torch.randn(B, D), torch.randn(B, GUIDE), torch.arange(B)
    options = global_head.Options(hidden_dim=5)
    for_self = global_head.build(options, SiteInfo("vision.2.self_head", 2, 4, D, GUIDE, 3))
    for_cross = global_head.build(options, SiteInfo("vision.2.cross_head", 2, 4, D, GUIDE, 3))
    assert_close(for_self(own, guide, ids), for_self.mlp(own))
    assert_close(for_cross(own, guide, ids), for_cross.mlp(torch.cat((own, guide), -1)))
    assert not torch.allclose(for_cross(own, guide, ids), for_cross(own, guide + 1, ids))
