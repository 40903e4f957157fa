"""Decoding with and without a context: caches, shared memory, trimmed heads; against attention by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from smarttrim_cli.backbones._coattention import CoAttention
from smarttrim_cli.pruning import decoder_memory, host, prepared
from smarttrim_cli.pruning.context import ForwardContext, enter, running
from smarttrim_cli.pruning.decisions import Decisions
from smarttrim_cli.pruning.decoder import Decoder
from smarttrim_cli.pruning.projections import BertProjections
from smarttrim_cli.pruning.sites import Architecture, AttentionSpec, LayerSpec
from smarttrim_cli.pruning.static_heads import StaticHeadsOf
from tests import tiny

WIDTH, HEADS, BATCH, ROWS, TOKENS = 12, 3, 4, 2, 5
LENGTHS = (6, 3, 5, 1)
OWN = AttentionSpec("a", "hosted", HEADS, 4)
CROSS = AttentionSpec("c", "hosted", HEADS, 4, "vision", 0, WIDTH)
ARCHITECTURE = Architecture(
    (
        LayerSpec("vision", 0, "vision_encoder", WIDTH, 1, OWN),
        LayerSpec("decoder", 0, "decoder", WIDTH, 1, OWN, CROSS, kinds=("self_head", "cross_head")),
    ),
    (),
    (),
)
SITES = ("decoder.0.self_head", "decoder.0.cross_head")


def modules() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return tuple(tiny.enliven(CoAttention(WIDTH, HEADS, 0.0), seed).eval() for seed in (1, 2))  # type: ignore[return-value]


def data() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    memory = torch.randn(BATCH, max(LENGTHS), WIDTH, generator=generator)
    own = torch.randn(BATCH * ROWS, TOKENS, WIDTH, generator=generator)
    own[:, 0] = own[::ROWS, 0].repeat_interleave(ROWS, 0)
    valid = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return memory, own, valid


def by_hand(module: nn.Module, own: Tensor, memory: Tensor, heads: Tensor, causal: bool) -> Tensor:
    """One row's attention, (T, D), one head and query at a time; output projection included."""
    inner, out = module.self, torch.zeros(len(own), WIDTH)
    q, k, v = inner.query(own), inner.key(memory), inner.value(memory)
    for head in range(HEADS):
        part = slice(4 * head, 4 * head + 4)
        for step in range(len(own)):
            seen = step + 1 if causal else len(memory)
            weights = (q[step, part] @ k[:seen, part].T / 2).softmax(-1)
            out[step, part] = heads[head] * (weights @ v[:seen, part])
    return module.output.dense(out)


def step(decoder: Decoder, hidden: Tensor, own: nn.Module, cross: nn.Module) -> tuple[Tensor, Tensor]:
    decoder.begin_layer(0, hidden)
    outputs = (
        decoder.self_attention(0, BertProjections(own), hidden),
        decoder.cross_attention(0, BertProjections(cross), hidden),
    )
    decoder.advance(hidden)
    return outputs


def replayed(mask_BH: Tensor) -> Decisions:
    return Decisions(keep={"decoder.0.self_head": mask_BH, "decoder.0.cross_head": mask_BH.flip(1)})


def context(mode: str, mask_BH: Tensor | None, static: bool = True) -> ForwardContext:
    """Repeats decisions; where they are the same for all instances the trimmers may be static."""
    if mask_BH is None:
        return ForwardContext(mode, ARCHITECTURE, {})
    static = static and bool((mask_BH == mask_BH[0]).all())
    trimmers = dict.fromkeys(SITES, SimpleNamespace(static=static))
    return ForwardContext(mode, ARCHITECTURE, trimmers, replay=replayed(mask_BH), static=StaticHeadsOf())


def no_host_heads(mask_BH: Tensor) -> None:
    raise AssertionError("the host was told of heads")


ALL = torch.ones(BATCH, HEADS, dtype=torch.bool)
SOME = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 1], [1, 1, 1]], dtype=torch.bool)
ALIKE, NONE = torch.tensor([[1, 0, 0]] * BATCH, dtype=torch.bool), torch.zeros_like(SOME)
MASKS = {"all heads": None, "some heads": SOME, "the same heads": ALIKE, "no heads": NONE}


@torch.no_grad()
@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize("mode", ["full", "masked", "packed", "packed, asking costs"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_every_mode_is_attention_by_hand(
    mode: str, mask: Tensor | None, caching: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode == "full" and mask is not None:
        pytest.skip("the full model keeps its heads")
    if mode == "packed, asking costs":  # as on a GPU
        mode = "packed"
        monkeypatch.setattr(host, "asking_costs", lambda device: True)
        monkeypatch.setattr("smarttrim_cli.pruning.context.host_heads", no_host_heads)
    (own, cross), (memory, hidden, valid) = modules(), data()
    outputs: list[tuple[Tensor, Tensor]] = []

    def decode(flowing: Tensor) -> None:
        decoder = Decoder("decoder", "vision", flowing, BATCH, valid if mode == "full" else None)
        decoder.caching = caching
        parts = hidden.split([2, 1, 1, 1] if caching else [TOKENS], 1)
        outputs.extend(step(decoder, part, own, cross) for part in parts)

    if mode == "full":
        decode(memory)
    else:
        running_context = context(mode, mask)
        with running(running_context):
            decode(enter("vision", memory, valid))
        work = running_context.decisions().work
        pairs = 2 * 2 + 3 + 4 + 5 if caching else TOKENS * TOKENS
        assert work["decoder"].tolist() == [ROWS * TOKENS] * BATCH
        assert work["decoder.pairs"].tolist() == [ROWS * pairs] * BATCH
        assert work["decoder.logits"].tolist() == work["decoder"].tolist()
        assert work["decoder.row_calls"].tolist() == [ROWS * len(outputs)] * BATCH
    found_own, found_cross = (torch.cat(parts, 1) for parts in zip(*outputs, strict=True))
    kept = ALL if mask is None else mask
    for row in range(BATCH * ROWS):
        instance = row // ROWS
        own_heads, cross_heads = kept[instance].float(), kept.flip(1)[instance].float()
        expected = by_hand(own, hidden[row], hidden[row], own_heads, causal=True)
        assert_close(found_own[row], expected, rtol=0, atol=1e-5)
        seen = memory[instance, : LENGTHS[instance]]
        expected = by_hand(cross, hidden[row], seen, cross_heads, causal=False)
        assert_close(found_cross[row], expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_beams_go_on_from_other_beams(mode: str, mask: Tensor | None) -> None:
    """Expanding and reordering the cache is decoding the reordered rows from the start."""
    (own, cross), (memory, hidden, valid) = modules(), data()
    first = hidden[::ROWS, :1]
    order = torch.tensor([1, 1, 2, 3, 5, 4, 6, 6])
    with running(context(mode, mask)):
        decoder = Decoder("decoder", "vision", enter("vision", memory, valid), BATCH)
        decoder.caching = True
        step(decoder, first, own, cross)
        decoder.expand(ROWS)
        step(decoder, hidden[:, 1:2], own, cross)
        decoder.reorder(order)
        found = step(decoder, hidden[:, 2:3], own, cross)[0]
    with running(context(mode, mask)):
        decoder = Decoder("decoder", "vision", enter("vision", memory, valid), BATCH)
        whole = torch.cat((hidden[:, :1], hidden[order, 1:2], hidden[:, 2:3]), 1)
        expected = step(decoder, whole, own, cross)[0][:, 2:]
    assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_steps_of_instances_that_are_done_are_not_counted(mode: str) -> None:
    """Two tokens of all, one more of all but the second, one more of the first and the third."""
    (own, cross), (memory, hidden, valid) = modules(), data()
    running_context = context(mode, SOME)
    with running(running_context):
        decoder = Decoder("decoder", "vision", enter("vision", memory, valid), BATCH)
        decoder.caching = True
        for part, over in zip(hidden[:, :4].split([2, 1, 1], 1), ([1], [1, 3], []), strict=True):
            step(decoder, part, own, cross)
            done = torch.zeros(BATCH, dtype=torch.bool)
            done[over] = True
            decoder.reorder(torch.arange(BATCH * ROWS), done)
    work = running_context.decisions().work
    assert work["decoder"].tolist() == [ROWS * tokens for tokens in (4, 2, 4, 3)]
    assert work["decoder.pairs"].tolist() == [ROWS * pairs for pairs in (4 + 3 + 4, 4, 4 + 3 + 4, 4 + 3)]
    assert work["decoder.row_calls"].tolist() == [ROWS * calls for calls in (3, 1, 3, 2)]


@torch.no_grad()
@pytest.mark.parametrize("taking_out", [True, False])
@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_writing_on_prepared_weights_is_writing(
    mask: Tensor | None, static: bool, taking_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packed decoder projects all heads, or those that are left; masks are the reference."""
    (own, cross), (memory, hidden, valid) = modules(), data()

    def decode(mode: str) -> list[Tensor]:
        with running(context(mode, mask, static)):
            decoder = Decoder("decoder", "vision", enter("vision", memory, valid), BATCH)
            decoder.caching = True
            return [x for part in hidden.split([2, 1, 2], 1)[:2] for x in step(decoder, part, own, cross)]

    expected = decode("masked")
    monkeypatch.setattr(prepared, "MIN_WEIGHTS", 0)
    monkeypatch.setattr(decoder_memory, "taking_out_pays", lambda *_: taking_out)
    for module in (own, cross):
        prepared.prepare(module)
    for found, wanted in zip(decode("packed"), expected, strict=True):
        assert_close(found, wanted, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("caching", [False, True])
def test_heads_that_all_instances_drop_are_not_projected(caching: bool) -> None:
    (own, cross), (memory, hidden, valid) = modules(), data()
    widths: list[int] = []

    def noted(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        widths.append(args[0].shape[-1])

    for module in (own, cross):
        for linear in (module.self.query, module.self.key, module.self.value, module.output.dense):
            linear.register_forward_pre_hook(noted)
    with running(context("packed", ALIKE)):
        decoder = Decoder("decoder", "vision", enter("vision", memory, valid), BATCH)
        decoder.caching = caching
        step(decoder, hidden, own, cross)
    assert widths == []  # parts of the layers were called, not they themselves


def test_gradients_reach_the_memorys_mask_and_the_heads() -> None:
    (own, cross), (memory, hidden, valid) = modules(), data()
    heads = torch.full((BATCH, HEADS), 0.0, requires_grad=True)

    class Learned(nn.Module):
        draws = False

        def forward(self, *_: Tensor) -> Tensor:
            return heads

    running_context = ForwardContext("masked", ARCHITECTURE, dict.fromkeys(SITES, Learned()), threshold=-1.0)
    from smarttrim_cli.pruning.gumbel import Sampling

    running_context.sampling = Sampling(1.0, 0.0)
    with running(running_context):
        decoder = Decoder("decoder", "vision", enter("vision", memory, valid), BATCH)
        total = sum(part.square().sum() for part in step(decoder, hidden, own, cross))
    total.backward()
    assert heads.grad is not None and (heads.grad != 0).all()
