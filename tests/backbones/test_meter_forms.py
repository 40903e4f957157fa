"""METER's forms: two images or several texts are rows of a batch, trimmed each by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from smarttrim_cli.backbones import meter
from smarttrim_cli.data.processor import train_word_tokenizer
from smarttrim_cli.errors import UserError
from smarttrim_cli.forms import Form
from smarttrim_cli.pruning.cost import full_counts, instance_macs, macs_by_part, total_macs
from smarttrim_cli.pruning.model import TrimmedModel
from tests import tiny
from tests.contracts.test_macs import measured

EXACT = {"rtol": 0.0, "atol": 1e-5}
OPTIONS = tiny.BACKBONES["meter"]["plain"]


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def host(form: str | Form) -> meter.Meter:
    torch.manual_seed(0)
    form = tiny.FORMS[form] if isinstance(form, str) else form
    return tiny.enliven(meter.build(meter.Options.model_validate(OPTIONS), form)).eval()


def trimmed(form: str) -> TrimmedModel:
    return tiny.attach(host(form), "cross_modal", "global_head")


def pairs(texts: int = 3) -> dict[str, Tensor]:
    """Five images with several texts of different lengths each."""
    model = host("vqa")
    one = [tiny.ragged_inputs(model, seed=seed) for seed in range(texts)]
    shifted = [{n: t.roll(seed, 0) for n, t in inputs.items()} for seed, inputs in enumerate(one)]
    texts_BKL = {
        n: torch.stack([inputs[n] for inputs in shifted], 1) for n in ("input_ids", "attention_mask")
    }
    return {"pixel_values": one[0]["pixel_values"], **texts_BKL}


def same_but_types(model: TrimmedModel, row: int) -> TrimmedModel:
    """A model of one image with the weights and trimmers of one of two, for its first or second image."""
    single = trimmed("vqa")
    own, other = single.state_dict(), model.state_dict()
    shared = {name: value for name, value in other.items() if name in own and "classifier" not in name}
    types = other["backbone.token_type_embeddings.weight"]
    shared["backbone.token_type_embeddings.weight"] = types[[0, row]]
    single.load_state_dict(shared, strict=False)
    return single


# --- rows ---


@pytest.mark.parametrize("mode", ["full", "masked", "packed"])
def test_each_image_of_a_pair_is_a_pass_of_its_own(mode: str) -> None:
    model = trimmed("nlvr2")
    inputs = tiny.ragged_inputs(model.backbone)
    pooled = []
    for image in range(2):
        single = same_but_types(model, 1 + image)
        seen: list[Tensor] = []
        hook = single.backbone.vqa_classifier.register_forward_pre_hook(
            lambda _, args, to=seen: to.append(args[0])
        )
        single({**inputs, "pixel_values": inputs["pixel_values"][:, image]}, mode)
        hook.remove()
        pooled.append(seen[0])
    assert not torch.allclose(pooled[0], pooled[1], atol=1e-2)
    expected = model.backbone.nlvr2_classifier(torch.cat(pooled, -1))
    assert_close(model(inputs, mode).output, expected, **EXACT)


@pytest.mark.parametrize("mode", ["full", "masked", "packed"])
def test_each_text_of_an_image_is_a_pass_of_its_own(mode: str) -> None:
    model, inputs = trimmed("retrieval"), pairs()
    scores = model(inputs, mode).output
    assert scores.shape == (5, 3) and scores.std() > 0.1
    for text in range(3):
        one = {name: t[:, text : text + 1] if name != "pixel_values" else t for name, t in inputs.items()}
        assert_close(model(one, mode).output, scores[:, text : text + 1], **EXACT)
    flat = {name: t[:, 0] if name != "pixel_values" else t for name, t in inputs.items()}
    assert_close(model(flat, mode).output, scores[:, :1], **EXACT)


@pytest.mark.parametrize("mode", ["full", "masked", "packed"])
def test_the_last_text_is_matched_with_another_image(mode: str) -> None:
    """Training of retrieval: scores of the texts before it, logits of the matching head for it."""
    model, inputs = trimmed("retrieval"), pairs()
    others = inputs["pixel_values"].roll(1, 0)
    forward = model({**inputs, "other_images": others}, mode)
    assert_close(forward.output.scores, model(inputs, mode).output[:, :2], **EXACT)
    last = {name: inputs[name][:, 2:] for name in ("input_ids", "attention_mask")}
    seen: list[Tensor] = []
    hook = model.backbone.rank_output.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model({"pixel_values": others, **last}, mode)
    hook.remove()
    expected = model.backbone.itm_score(seen[0].flatten(0, -2))
    assert_close(forward.output.matching, expected, **EXACT)
    assert forward.output.matching.std() > 0.1
    if mode != "full":
        assert forward.decisions.copies == {"text": 3, "vision": 3}


def test_decisions_of_an_image_depend_on_the_text() -> None:
    model, inputs = trimmed("retrieval"), pairs()
    masked, packed = (model(inputs, mode) for mode in ("masked", "packed"))
    assert packed.decisions.copies == {"text": 3, "vision": 3}
    keep = packed.decisions.keep["vision.1.token"]
    assert keep.shape == (15, 17) and not torch.equal(keep[0::3], keep[1::3])
    for name, value in masked.decisions.keep.items():
        assert torch.equal(value, packed.decisions.keep[name]), name
    for seed in range(3):
        replay = tiny.random_decisions(model, inputs, seed)
        assert_close(*(model(inputs, mode, replay=replay).output for mode in ("masked", "packed")), **EXACT)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["nlvr2", "retrieval"])
def test_macs_are_summed_over_the_rows(form: str) -> None:
    model = trimmed(form)
    inputs = pairs() if form == "retrieval" else tiny.ragged_inputs(model.backbone)
    one = {name: tensor[:1] for name, tensor in inputs.items()}
    trimmed_B, _ = instance_macs(model, model(one, "packed").decisions)
    assert measured(model, one, "packed") == pytest.approx(trimmed_B.item(), rel=0.005)
    one["attention_mask"] = torch.ones_like(one["attention_mask"])
    _, full_B = instance_macs(model, model(one, "packed").decisions)
    assert measured(model, one, "full") == pytest.approx(full_B.item(), rel=0.0005)


# --- what the engine asks ---


@pytest.mark.parametrize("form", ["vqa", "nlvr2", "snli_ve", "retrieval"])
def test_example_inputs_fit(form: str) -> None:
    model = host(form)
    inputs = model.example_inputs(7, batch=3, seed=1)
    images, texts = (2,) if form == "nlvr2" else (), (1,) if form == "retrieval" else ()
    assert inputs["pixel_values"].shape == (3, *images, 3, 32, 32)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (3, *texts, 7)
    assert model(**inputs).shape == (3, {"vqa": 5, "nlvr2": 2, "snli_ve": 3, "retrieval": 1}[form])
    assert model.token_counts(7) == {"text": 7, "vision": 17}
    assert model.form is tiny.FORMS[form]


@pytest.mark.parametrize(
    ("form", "heads"),
    [
        ("vqa", {"vqa_classifier"}),
        ("nlvr2", {"nlvr2_classifier"}),
        ("snli_ve", {"snli_classifier"}),
        ("retrieval", {"itm_score", "rank_output"}),
        (Form("pretraining"), {"itm_score", "mlm_score"}),
    ],
)
def test_heads_belong_to_the_head(form: str | Form, heads: set[str]) -> None:
    model = host(form)
    parts = {name: model.part_of(name) for name, _ in model.named_parameters()}
    assert {name.split(".")[0] for name, part in parts.items() if part == "head"} == heads
    assert {part for name, part in parts.items() if name.startswith(("cross_modal", "token_type"))} == {
        "cross_modal"
    }


def test_only_the_ranking_head_is_trained_for_retrieval() -> None:
    torch.manual_seed(0)
    model = meter.build(meter.Options.model_validate(OPTIONS), tiny.FORMS["retrieval"])
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["itm_score.fc.weight", "itm_score.fc.bias"]
    assert model.rank_output.weight.shape == (1, 80)
    assert torch.equal(model.rank_output.weight, model.itm_score.fc.weight[1:])


def test_a_second_image_starts_with_the_token_type_of_the_first() -> None:
    torch.manual_seed(0)
    model = meter.build(meter.Options.model_validate(OPTIONS), tiny.FORMS["nlvr2"])
    types = model.token_type_embeddings.weight
    assert torch.equal(types[1], types[2]) and not torch.equal(types[0], types[1])


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(UserError, match="no form 'captioning'") as error:
        host("captioning")
    assert "vqa, nlvr2, snli_ve, retrieval" in str(error.value)


def test_costs_of_meter_base() -> None:
    """Those that torchprofile counts on the official model at 288, 10 text tokens."""

    def macs(form: Form, size: int = 288) -> float:
        with torch.device("meta"):
            model = meter.build(meter.Options(image_size=size), form)
        counts = full_counts(model.architecture(), model.token_counts(10))
        return total_macs(model.architecture(), counts) / 1e9

    assert macs(Form("vqa", 3129)) == pytest.approx(48.372, abs=5e-3)
    assert macs(Form("vqa", 3129), 384) == pytest.approx(88.565, abs=5e-3)
    assert macs(Form("nlvr2", 2, images=2)) == pytest.approx(96.73, abs=5e-3)


def test_costs_of_meter_base_by_part() -> None:
    with torch.device("meta"):
        model = meter.build(meter.Options(), Form("vqa", 3129))
    parts = macs_by_part(model.architecture(), full_counts(model.architecture(), model.token_counts(10)))
    expected = {
        "vision_encoder": 27.307,
        "text_encoder": 0.851,
        "cross_modal": 0.198 + 5.576 + 2.403 + 9.203 + 0.143 + 2.401 + 0.283,
        "head": 0.008,
    }
    assert {name: value / 1e9 for name, value in parts.items()} == pytest.approx(expected, abs=5e-3)


# --- tokenizers ---


def section(**config: Any) -> dict[str, Any]:
    text = OPTIONS["text"]
    return {"name": "meter", **OPTIONS, "text": {**text, "config": {**text["config"], **config}}}


def test_a_vocabulary_that_is_large_enough_stays() -> None:
    tokenizer = train_word_tokenizer(["what is red"])
    assert meter.fit_to_tokenizer(section(), tokenizer) == section()
    assert meter.fit_to_tokenizer({"name": "meter"}, tokenizer) == {"name": "meter"}


def test_embeddings_grow_with_the_tokenizer() -> None:
    tokenizer = train_word_tokenizer([" ".join(f"word{index}" for index in range(70))])
    fitted = meter.fit_to_tokenizer(section(), tokenizer)
    assert fitted == section(vocab_size=74) and section()["text"]["config"]["vocab_size"] == 60
    options = meter.Options.model_validate({k: v for k, v in fitted.items() if k != "name"})
    model = meter.build(options, Form("pretraining"))
    assert model.text_transformer.embeddings.word_embeddings.num_embeddings == 74
    assert isinstance(model.mlm_score, nn.Module) and model.mlm_score.bias.shape == (74,)


def test_the_padding_id_is_the_tokenizers() -> None:
    tokenizer = train_word_tokenizer(["what is red"])
    tokenizer.pad_token = "</s>"
    fitted = meter.fit_to_tokenizer(section(), tokenizer)
    assert fitted == section(pad_token_id=2)
    too_short = {**section(pad_token_id=2, max_position_embeddings=32)}
    with pytest.raises(UserError, match="too few for texts of 30 tokens") as error:
        meter.build(
            meter.Options.model_validate({k: v for k, v in too_short.items() if k != "name"}), Form("vqa", 3)
        )
    assert "at least 33" in str(error.value)


def test_a_text_encoder_that_does_not_exist_is_named() -> None:
    tokenizer = train_word_tokenizer(["what is red"])
    with pytest.raises(UserError, match="no_such_type"):
        meter.fit_to_tokenizer({"name": "meter", "text": {"model_type": "no_such_type"}}, tokenizer)


def test_a_tokenizer_of_the_tasks_own_words_has_no_rows_to_spare() -> None:
    tokenizer = train_word_tokenizer(["what is red"])
    bare = {"name": "meter", "tokenizer": "train", "text": {"model_type": "roberta", "config": {}}}
    fitted = meter.fit_to_tokenizer(bare, tokenizer)
    assert fitted["text"]["config"]["vocab_size"] == len(tokenizer)
