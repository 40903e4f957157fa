"""However dropped heads are left out, packed is masked: in ways that tiny models do not choose, too."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from smarttrim_cli.pruning import packed_attention, prepared, stream
from tests import tiny
from tests.tiny import Variant

EXACT = {"rtol": 0.0, "atol": 1e-5}
NEVER, ALWAYS = 1e9, -1e9
WAYS = {  # overheads of taking weights out for queries, keys and values, and for the output
    "whole": (NEVER, NEVER),
    "taken out": (ALWAYS, ALWAYS),
    "taken out before": (ALWAYS, NEVER),
    "taken out behind": (NEVER, ALWAYS),
}


@torch.no_grad()
@pytest.mark.parametrize("kernels", ["host", "prepared"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("variant", tiny.variants(), ids=str)
def test_packed_is_masked(variant: Variant, way: str, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_attention, "WORTH_LEAVING_OUT", -1)
    monkeypatch.setattr(packed_attention, "OVERHEAD_IN", WAYS[way][0])
    monkeypatch.setattr(packed_attention, "OVERHEAD_OUT", WAYS[way][1])
    monkeypatch.setattr(prepared, "MIN_WEIGHTS", 1)
    monkeypatch.setattr(stream, "rounded_up", tiny.to_multiples_of_4)
    called = []
    by_instance = packed_attention._by_instance
    monkeypatch.setattr(
        packed_attention, "_by_instance", lambda *args: called.append(0) or by_instance(*args)
    )
    model = tiny.attach(variant.build(), "cross_modal", "global_head")
    inputs = tiny.ragged_inputs(model.backbone)
    replay = tiny.random_decisions(model, inputs, 0)
    masked = model(inputs, "masked", replay=replay)
    if kernels == "prepared":
        model.prepare()
    packed = model(inputs, "packed", replay=replay)
    assert called
    assert_close(packed.output, masked.output, **EXACT)
    for index in (0, 3):
        one = tiny.instance(inputs, index)
        alone = model(one, "packed", replay=replay.instance(index)).output
        if alone.shape == packed.output[index : index + 1].shape:
            assert_close(alone, packed.output[index : index + 1], **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("variant", tiny.first_variants(), ids=str)
def test_packed_runs_in_half_precision(
    variant: Variant, way: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under autocast what attends has another type than what flows between layers."""
    monkeypatch.setattr(packed_attention, "WORTH_LEAVING_OUT", -1)
    monkeypatch.setattr(packed_attention, "OVERHEAD_IN", WAYS[way][0])
    monkeypatch.setattr(packed_attention, "OVERHEAD_OUT", WAYS[way][1])
    model = tiny.attach(variant.build(), "cross_modal", "global_head")
    inputs = tiny.ragged_inputs(model.backbone)
    replay = tiny.random_decisions(model, inputs, 0)
    single = model(inputs, "packed", replay=replay).output
    with torch.autocast("cpu", dtype):
        half = model(inputs, "packed", replay=replay).output
    assert_close(half.float(), single, rtol=0.05, atol=0.05)
