"""MLPs joined into one say what they say one by one."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from smarttrim_cli.pruning.joint_mlps import JointMlps
from smarttrim_cli.pruning.stream import begin_packed
from smarttrim_cli.trimmers import cross_modal, global_head, local, random_head
from smarttrim_cli.trimmers.base import SiteInfo, TokenView

WIDTH, GUIDE, HEADS = 12, 10, 4


def trimmers(guide: int):
    torch.manual_seed(0)
    site = SiteInfo("vision.1.token", 1, 4, WIDTH, guide)
    heads = [SiteInfo(f"vision.1.{kind}", 1, 4, WIDTH, guide, HEADS) for kind in ("self_head", "cross_head")]
    return {
        "token": cross_modal.build(cross_modal.Options(hidden_dim=6), site),
        "self": global_head.build(global_head.Options(hidden_dim=5), heads[0]),
        "random": random_head.build(random_head.Options(), heads[0]),
        "cross": global_head.build(global_head.Options(hidden_dim=7), heads[1]),
    }


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("guide", [0, GUIDE])
def test_joined_is_one_by_one(guide: int, batch: int) -> None:
    found, joint = trimmers(guide), JointMlps()
    own, other = torch.randn(batch, WIDTH), torch.randn(batch, guide) if guide else None
    for _ in range(2):
        outputs = joint.outputs(found, own, other)
        assert list(outputs) == ["token", "self", "cross"]
        both = own if other is None else torch.cat((own, other), 1)
        assert_close(outputs["token"], found["token"].key(found["token"].guide(both)))
        for name in ("self", "cross"):
            assert_close(outputs[name], found[name](own, other, torch.zeros(batch)))
        for parameter in found["token"].parameters():
            parameter.mul_(1.5)  # seen by the next round


def test_without_such_mlps_there_is_nothing() -> None:
    assert JointMlps().outputs({"random": trimmers(0)["random"]}, torch.randn(2, WIDTH), None) == {}


@torch.no_grad()
@pytest.mark.parametrize("width", [WIDTH, 700])  # the second on laid out weights
@pytest.mark.parametrize("lengths", [(9,), (5, 9, 2)])
@pytest.mark.parametrize("kind", [cross_modal, local])
def test_tokens_are_scored_as_by_the_trimmer(kind, lengths: tuple[int, ...], width: int) -> None:
    torch.manual_seed(0)
    trimmer = kind.build(kind.Options(hidden_dim=48), SiteInfo("vision.1.token", 1, 4, width, width))
    joint, batch = JointMlps(), len(lengths)
    valid = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    stream, _ = begin_packed(valid, rounded=True)
    own, guide = torch.randn(batch, width), torch.randn(batch, width)
    tokens = torch.randn(1, len(stream.segment_T), width)
    view = TokenView(tokens, own, guide, stream, stream.spread_scalar(torch.arange(batch)))
    for _ in range(2):
        from_cls = joint.outputs({"token": trimmer}, own, guide).get("token")
        scores = joint.token_scores("token", trimmer, view, from_cls)
        assert_close(scores, trimmer(view), rtol=1e-4, atol=1e-4)
        for parameter in trimmer.parameters():
            parameter.mul_(1.1)  # seen by the next round


def test_trimmers_of_another_kind_score_for_themselves() -> None:
    assert JointMlps().token_scores("token", trimmers(0)["random"], None, None) is None  # type: ignore[arg-type]


@torch.no_grad()
def test_a_score_is_whole_or_left_to_the_trimmer() -> None:
    trimmer, (stream, _) = trimmers(GUIDE)["token"], begin_packed(torch.ones(1, 4, dtype=torch.bool))
    own, guide = torch.randn(1, WIDTH), torch.randn(1, GUIDE)
    view = TokenView(torch.randn(1, 4, WIDTH), own, guide, stream, torch.zeros(1, 4, dtype=torch.long))
    assert JointMlps().token_scores("token", trimmer, view, None) is None
