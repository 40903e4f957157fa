"""What is fetched from a device where asking costs: the same results, with one question per site."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from smarttrim_cli.pruning import host
from tests import tiny

FORMS = [variant for variant in tiny.one_per_form() if variant.form != "captioning"]


@pytest.mark.parametrize("seed", range(5))
def test_the_chosen_are_those_of_nonzero(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    lengths_B = torch.randint(1, 9, (6,), generator=draw)
    segment_T = torch.repeat_interleave(torch.arange(6), lengths_B)
    for share in (0.0, 0.4, 1.0):
        keep_T = torch.rand(len(segment_T), generator=draw) < share
        lengths, index_K = host.chosen_in_one_transfer(keep_T, segment_T, 6)
        assert torch.equal(index_K, keep_T.nonzero().squeeze(1))
        assert list(lengths) == torch.bincount(segment_T[keep_T], minlength=6).tolist()


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What asks for numbers, counted."""
    asked: Counter[str] = Counter()
    for name in ("tolist", "item", "nonzero", "__bool__", "__float__", "__int__"):
        method = getattr(Tensor, name)

        def counted(self: Tensor, *args: Any, name: str = name, method: Any = method, **kwargs: Any) -> Any:
            asked[name] += 1
            return method(self, *args, **kwargs)

        monkeypatch.setattr(Tensor, name, counted)
    return asked


@pytest.mark.parametrize("variant", FORMS, ids=str)
@pytest.mark.parametrize("head", ["global_head", "saliency_head"])
def test_results_stay_and_questions_are_fewer(
    variant: tiny.Variant, head: str, questions: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.attach(variant.build(), "cross_modal", head)
    if head == "saliency_head":
        tiny.rank_heads(model, 0.5)
    inputs = tiny.ragged_inputs(model.backbone)
    with torch.no_grad():
        near = model(inputs, "packed")
        before = questions.total()
        monkeypatch.setattr(host, "asking_costs", lambda device: True)
        far = model(inputs, "packed")
        after = questions.total() - before
    if isinstance(near.output, Tensor):
        assert_close(far.output, near.output, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(keep, near.decisions.keep[site]) for site, keep in far.decisions.keep.items())
    if str(variant) != "blip-plain-nlvr2":  # whose two images are told apart on the host
        # per token site its lengths; per stream its tokens; the threshold
        tokens = sum(name.endswith("token") for name in model.sites)
        assert after <= tokens + 12 and after < before
