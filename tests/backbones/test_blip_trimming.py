"""BLIP trimmed: what the contracts do not see, because they run each form on one kind of input.

Writing and ranking in all modes, work and costs of decoding, guidance by the question, published MACs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchprofile import profile_macs

from smarttrim_cli import registry
from smarttrim_cli.backbones import blip
from smarttrim_cli.forms import GENERATES, Decoding, Form
from smarttrim_cli.pruning.cost import double_counts, full_counts, instance_macs, total_macs
from smarttrim_cli.pruning.gumbel import Sampling
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.objective import Objective, Target, Weights
from smarttrim_cli.tasks.base import Batch
from tests import tiny

OPTIONS = tiny.BACKBONES["blip"]["plain"]
WRITING = Decoding(num_beams=3, max_length=9, min_length=1)
RANKING = Decoding(num_candidates=3, rank=True)


def host(form: str, decoding: Decoding | None = None, **more: Any) -> Any:
    prompt = 3 if form == "captioning" else 1
    images, labels = (2 if form == "nlvr2" else 1), (3 if form == "snli_ve" else 2)
    generates = blip.FORMS[form] == GENERATES
    shape = Form(form, labels, images, 9, prompt, 4, decoding if generates else None)
    torch.manual_seed(0)
    options = registry.options("backbones", {"name": "blip", **OPTIONS, **more})
    return tiny.enliven(registry.load("backbones", "blip").build(options, shape)).eval()


def attach(model: nn.Module) -> TrimmedModel:
    return tiny.attach(model, "cross_modal", "global_head")


def asked(model: Any, kind: str) -> dict[str, Tensor]:
    inputs = tiny.ragged_inputs(model)
    return tiny.as_ranking(inputs) if kind == "ranking" else tiny.as_writing(model, inputs)


CASES = [("vqa", "writing", WRITING), ("captioning", "writing", WRITING), ("vqa", "ranking", RANKING)]
cases = pytest.mark.parametrize(("form", "kind", "decoding"), CASES, ids=["answer", "caption", "rank"])


@cases
def test_keeping_everything_is_full(form: str, kind: str, decoding: Decoding) -> None:
    model = attach(host(form, decoding))
    inputs = asked(model.backbone, kind)
    with torch.no_grad(), model.at_threshold(-1e9):
        full, masked, packed = (model(inputs, mode).output for mode in ("full", "masked", "packed"))
    for output in (masked, packed):
        torch.testing.assert_close(output, full, atol=1e-4, rtol=0)


@cases
def test_packed_is_masked(form: str, kind: str, decoding: Decoding) -> None:
    model = attach(host(form, decoding))
    inputs = asked(model.backbone, kind)
    with torch.no_grad():
        masked = model(inputs, "masked")
        packed = model(inputs, "packed", replay=masked.decisions)
    torch.testing.assert_close(packed.output, masked.output, atol=1e-4, rtol=0)
    counts = masked.decisions.counts
    assert any(name.startswith("decoder") and (count < count.max()).any() for name, count in counts.items())


@cases
@pytest.mark.parametrize("mode", ["full", "packed"])
def test_instances_do_not_depend_on_the_batch(form: str, kind: str, decoding: Decoding, mode: str) -> None:
    model = attach(host(form, decoding))
    inputs = asked(model.backbone, kind)
    with torch.no_grad():
        together = model(inputs, mode).output
        for row in range(len(tiny.LENGTHS)):
            alone = model(tiny.instance(inputs, row), mode).output[0]
            if kind == "ranking":
                torch.testing.assert_close(alone, together[row], atol=1e-4, rtol=0)
            else:
                written = together[row].tolist()
                assert alone.tolist() == written[: len(alone)] and not any(written[len(alone) :])


class Traced(nn.Module):
    """All that a pass computes as its outputs: the tracer leaves out the rest."""

    def __init__(self, model: TrimmedModel, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        forward = self.model(dict(zip(self.names, tensors, strict=True)), "packed", log_scores=True)
        assert forward.context is not None
        heads = [mask for mask in forward.context.log.heads.values() if isinstance(mask, Tensor)]
        return [forward.output, *heads, *(scores for _, scores in forward.context.log.scores.values())]


@pytest.mark.filterwarnings("ignore")
@cases
@pytest.mark.parametrize("threshold", [-1e9, 0.0])
def test_macs_of_decoding(form: str, kind: str, decoding: Decoding, threshold: float) -> None:
    fixed = Decoding(num_beams=3, max_length=7, min_length=7) if kind == "writing" else decoding
    model = attach(host(form, fixed, guidance="text_encoder"))
    one = tiny.instance(asked(model.backbone, kind), 0)
    with torch.no_grad(), model.at_threshold(threshold):
        expected, _ = instance_macs(model, model(one, "packed").decisions)
        counted = profile_macs(Traced(model, tuple(one)), tuple(one.values()))
    assert counted == pytest.approx(expected.item(), rel=0.005)


@pytest.mark.parametrize("form", ["vqa", "captioning"])
def test_predicted_work_is_what_a_pass_notes(form: str) -> None:
    prompt = 3 if form == "captioning" else 1
    model = attach(host(form, Decoding(num_beams=3, max_length=prompt + 4, min_length=prompt + 4)))
    inputs = model.backbone.example_inputs(9)
    with torch.no_grad(), model.at_threshold(-1e9):
        noted = double_counts(model.architecture, model(inputs, "packed").decisions)
    predicted = full_counts(model.architecture, model.backbone.token_counts(9))
    assert predicted["decoder.in"] == 3 * (prompt + 3) and predicted["decoder.row_calls"] == 3 * 4
    assert predicted["decoder.logits"] == 3 * 4  # of the prompt only what follows its last token
    for name, number in predicted.items():
        assert float(noted[name]) == number, name


def test_a_prompt_costs_one_row_of_logits_as_run_and_all_as_published() -> None:
    """Its two further tokens go through the language model's head in the official code, for every beam."""
    model = attach(host("captioning", Decoding(num_beams=3, max_length=7, min_length=7)))
    inputs = model.backbone.example_inputs(9)
    with torch.no_grad():
        decisions = model(inputs, "packed").decisions
    run, published = (instance_macs(model, decisions, flag)[1][0].item() for flag in (False, True))
    text, vision = (getattr(model.backbone.options, name).config for name in ("text", "vision"))
    head = text.hidden_size * (text.hidden_size + 1 + text.vocab_size)
    tokens = model.backbone.token_counts(9)["vision"]
    projections = 2 * tokens * vision.hidden_size * text.hidden_size * text.num_hidden_layers
    assert published - run == 3 * 2 * head + (3 * 4 - 1) * projections


@pytest.mark.parametrize("solve", [True, False])
def test_budgets_of_training_are_those_of_writing(solve: bool) -> None:
    """Training reads whole captions, which costs a decoder something else than writing them."""
    model = attach(host("captioning", Decoding(num_beams=3, max_length=7, min_length=7)))
    inputs = tiny.ragged_inputs(model.backbone)
    with torch.no_grad():
        written = model(tiny.as_writing(model.backbone, inputs), "packed").decisions
    trimmed_B, full_B = instance_macs(model, written)
    ratio = (trimmed_B.mean() / full_B.mean()).item()

    def loss(output: Tensor, batch: Any) -> Tensor:
        return output.float().mean()

    work = model.backbone.token_counts(9)
    objective = Objective(
        model, loss, lambda output, batch: output.flatten(0, -2), Weights(distillation=0.0), work=work
    )
    batch = Batch(inputs, torch.arange(len(tiny.LENGTHS)), {})
    found = objective(batch, Target(dict.fromkeys(model.groups, 0.5), ratio, Sampling(1.0, 0.0), solve), 0.0)
    assert found["macs_ratio"].item() == pytest.approx(ratio, rel=1e-4)
    if solve:
        with torch.no_grad(), model.at_threshold(float(found["threshold"])):
            trimmed_B, _ = instance_macs(
                model, model(tiny.as_writing(model.backbone, inputs), "packed").decisions
            )
        assert (trimmed_B.mean() / full_B.mean()).item() == pytest.approx(ratio, rel=0.05)


PUBLISHED = [
    ("nlvr2", Form("nlvr2", images=2, text_tokens=19), 71.2),
    ("vqa", Form("vqa", text_tokens=10, new_tokens=4, decoding=Decoding(num_beams=3)), 38.6),
    (
        "captioning",
        Form("captioning", prompt_tokens=4, new_tokens=15, decoding=Decoding(num_beams=3)),
        243.8,
    ),
]


@pytest.mark.parametrize(("name", "form", "giga"), PUBLISHED, ids=[name for name, *_ in PUBLISHED])
def test_published_macs(name: str, form: Form, giga: float) -> None:
    """Paper: 71.2, 38.6 and 246.3 G; the last lies between 15 steps (243.8) and 16 (257.9)."""
    with torch.device("meta"):
        model = blip.build(blip.Options(), form)
    counts = full_counts(model.architecture(), model.token_counts(form.text_tokens))
    assert total_macs(model.architecture(), counts, as_published=True) / 1e9 == pytest.approx(giga, rel=1e-3)


# --- guidance ---


def vision_counts(model: TrimmedModel, inputs: dict[str, Tensor]) -> list[float]:
    with torch.no_grad():
        counts = model(inputs, "packed").decisions.counts
    return [count for name, value in counts.items() if name.startswith("vision") for count in value.tolist()]


@pytest.mark.parametrize("guidance", ["embeddings", "text_encoder"])
@pytest.mark.parametrize("form", ["vqa", "nlvr2", "snli_ve"])
def test_the_question_decides_about_the_image(form: str, guidance: str) -> None:
    model = attach(host(form, WRITING, guidance=guidance))
    inputs = tiny.ragged_inputs(model.backbone)
    other = {
        **inputs,
        "input_ids": inputs["input_ids"].flip(0),
        "attention_mask": inputs["attention_mask"].flip(0),
    }
    assert vision_counts(model, inputs) != vision_counts(model, other)


def test_in_retrieval_an_image_is_encoded_once_whatever_the_texts() -> None:
    model = attach(host("retrieval"))
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(2, 3, 32, 32, generator=generator)
    ids = torch.randint(5, 60, (2, 4, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 1, 4:] = mask[1, 3, 2:] = 0
    inputs = {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        packed, masked = (model(inputs, mode) for mode in ("packed", "masked"))
        assert len(packed.decisions.counts["vision.0.token"]) == 2
        assert len(packed.decisions.counts["text.0.token"]) == 8
        torch.testing.assert_close(packed.output, masked.output, atol=1e-4, rtol=0)
        for image in range(2):
            for text in range(4):
                length = int(mask[image, text].sum())
                one = {
                    "pixel_values": pixels[image : image + 1],
                    "input_ids": ids[image : image + 1, text : text + 1, :length],
                    "attention_mask": mask[image : image + 1, text : text + 1, :length],
                }
                alone = model(one, "packed").output
                torch.testing.assert_close(alone[0, 0], packed.output[image, text], atol=1e-4, rtol=0)


def test_without_trimming_the_question_is_not_read_twice() -> None:
    model = host("vqa", WRITING, guidance="text_encoder")
    architecture = model.architecture()
    assert architecture.overhead == ("guidance",)
    start = model.token_counts(9)
    full, trimming = (
        total_macs(architecture, full_counts(architecture, start, trimming=on)) for on in (False, True)
    )
    plain = host("vqa", WRITING).architecture()
    assert full == total_macs(plain, full_counts(plain, start)) and trimming > full


# --- training ---


@pytest.mark.parametrize("form", ["vqa", "nlvr2", "snli_ve", "retrieval", "captioning"])
def test_every_trimmer_learns(form: str) -> None:
    model = attach(host(form, WRITING)).train()
    model.start_keeping(1.0)  # of an attention without heads nothing could be learned about tokens
    output = model(tiny.ragged_inputs(model.backbone), "masked", sampling=Sampling()).output
    (output * torch.randn_like(output)).mean().backward()
    silent = {
        name
        for name, trimmer in model.sites.items()
        if not any(p.grad is not None and p.grad.abs().sum() > 0 for p in trimmer.parameters())
    }
    assert not silent
