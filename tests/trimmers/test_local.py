"""The local ablation: Eq. 3 alone."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from smarttrim_cli.pruning.stream import begin_masked
from smarttrim_cli.trimmers import cross_modal, local
from smarttrim_cli.trimmers.base import SiteInfo, TokenView

SITE = SiteInfo("vision.0.token", 0, 2, 6, 4)


@torch.no_grad()
def test_it_is_the_cross_modal_trimmer_without_its_guide() -> None:
    torch.manual_seed(0)
    whole, trimmer = cross_modal.build(cross_modal.Options(), SITE), local.build(local.Options(), SITE)
    names = {name.split(".")[0] for name, _ in trimmer.named_parameters()}
    assert names == {"project", "local"}
    trimmer.load_state_dict({n: t for n, t in whole.state_dict().items() if n.split(".")[0] in names})
    whole.key.weight.zero_()
    hidden, stream = torch.randn(2, 5, 6), begin_masked(torch.ones(2, 5, dtype=torch.bool))
    view = TokenView(hidden, hidden[:, 0], torch.randn(2, 4), stream, torch.zeros(2, 5))
    assert_close(trimmer(view), whole(view))


def test_widths_from_options() -> None:
    assert local.build(local.Options(), SITE).project.out_features == 96
    assert local.build(local.Options(hidden_dim=8, local_dim=3), SITE).local[0].out_features == 3
