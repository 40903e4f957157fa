"""BLIP VQA against reference data of the official code (fixtures/golden/blip_README.md), in mode ``full``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from smarttrim_cli.backbones import blip
from smarttrim_cli.backbones._blip_checkpoint import resize_positions, to_official
from smarttrim_cli.backbones._blip_decoder import decode, write
from smarttrim_cli.backbones._blip_encoders import encode_image, encode_pair
from smarttrim_cli.errors import UserError
from smarttrim_cli.forms import Decoding, Form
from smarttrim_cli.pruning.decoder import Decoder

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
ATOL = 5e-5
SECTION = {
    "image_size": 48,
    "max_text_length": 30,
    "vision": {
        "config": {
            "hidden_size": 48,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
        }
    },
    "text": {
        "config": {
            "vocab_size": 52,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 40,
            "sep_token_id": 3,
        }
    },
}
OFFICIAL = Decoding(num_beams=3, max_length=10, min_length=1)


def build(decoding: Decoding = OFFICIAL, **more: object) -> blip.Blip:
    model = blip.build(blip.Options(**SECTION, **more), Form("vqa", decoding=decoding))  # type: ignore[arg-type]
    blip.load_official(model, GOLDEN / "blip_vqa_tiny.safetensors", lambda line: None)
    return model.eval()


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN / "blip_vqa_tiny.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file if file[name].dtype.kind != "U"}


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def pair(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs with [CLS] at position 0, as the tokenizer gives it: the backbone puts [ENC] there."""
    ids = golden["in_question_ids"].clone()
    ids[:, 0] = 2
    return {
        "pixel_values": golden["in_image"],
        "input_ids": ids,
        "attention_mask": golden["in_question_mask"],
    }


def close(ours: Tensor, official: Tensor) -> None:
    torch.testing.assert_close(ours, official, atol=ATOL, rtol=0)


def smoothed_loss(logits_TV: Tensor, ids_T: Tensor, mask_T: Tensor) -> Tensor:
    losses_T = F.cross_entropy(logits_TV[:-1], ids_T[1:], reduction="none", label_smoothing=0.1)
    return (losses_T * mask_T[1:]).sum()


def test_encoders(golden: dict[str, Tensor]) -> None:
    model = build()
    close(encode_image(model, golden["in_image"]), golden["out_image_embeds"])
    inputs = pair(golden)
    before = inputs["input_ids"].clone()
    states, cls = encode_pair(model, **inputs)
    close(states, golden["out_question_states"])
    close(cls, golden["out_question_states"][:, 0])
    assert torch.equal(inputs["input_ids"], before)


def test_training_logits_and_loss(golden: dict[str, Tensor]) -> None:
    counts, longest = golden["in_train_n"].tolist(), int(golden["in_train_n"].max())
    answers, masks = (
        torch.stack([F.pad(part, (0, 0, 0, longest - len(part))) for part in golden[name].split(counts)])
        for name in ("in_train_answer_ids", "in_train_answer_mask")
    )
    logits = build()(**pair(golden), answer_ids=answers, answer_mask=masks)
    assert logits.shape == (2, 3, 5, 52)
    rows = torch.cat([logits[i, :n] for i, n in enumerate(counts)])
    ids, mask = golden["in_train_answer_ids"], golden["in_train_answer_mask"]
    real = mask.bool()  # behind the end token we attend to padding, and no loss looks at it
    close(rows[real], golden["out_train_logits"][real])
    losses = torch.stack([smoothed_loss(rows[i], ids[i], mask[i]) for i in range(5)])
    close(losses, golden["out_train_loss_per_answer"])
    close((losses * golden["in_train_weights"]).sum() / 2, golden["out_train_loss"])


@pytest.mark.parametrize("count", [3, 7])
def test_ranking(golden: dict[str, Tensor], count: int) -> None:
    candidates = {"candidate_ids": golden["in_cand_ids"], "candidate_mask": golden["in_cand_mask"]}
    scores = build(Decoding(num_candidates=count))(**pair(golden), **candidates)
    chosen, sums = golden[f"out_rank_topk_ids_k{count}"], golden[f"out_rank_logprob_sum_k{count}"]
    expected = torch.full((2, 7), float("-inf")).scatter(1, chosen, sums)
    close(scores, expected)
    assert torch.equal(scores.argmax(1), golden[f"out_rank_ids_k{count}"])


def test_more_candidates_asked_for_than_there_are(golden: dict[str, Tensor]) -> None:
    candidates = {"candidate_ids": golden["in_cand_ids"], "candidate_mask": golden["in_cand_mask"]}
    assert build(Decoding(num_candidates=128))(**pair(golden), **candidates).isfinite().all()


@pytest.mark.parametrize(("attend_to_padding", "kind"), [(True, "ones"), (False, "masked")])
def test_first_step_and_greedy(golden: dict[str, Tensor], attend_to_padding: bool, kind: str) -> None:
    model = build(Decoding(num_beams=1, max_length=10, min_length=1), attend_to_padding=attend_to_padding)
    states, _ = encode_pair(model, **pair(golden))
    mask = None if attend_to_padding else golden["in_question_mask"]
    first = decode(model, Decoder("decoder", "text", states, 2, mask), torch.full((2, 1), 50))
    close(model.text_decoder.cls(first)[:, 0], golden[f"out_first_step_logits_{kind}"])
    assert torch.equal(model(**pair(golden)), golden[f"out_generate_greedy_tokens_{kind}"])


def test_beam_search(golden: dict[str, Tensor]) -> None:
    model = build(attend_to_padding=True)
    assert torch.equal(model(**pair(golden)), golden["out_generate_beam3_tokens"])
    states, _ = encode_pair(model, **pair(golden))
    tokens, scores = write(model, Decoder("decoder", "text", states, 2), torch.full((2, 1), 2))
    assert torch.equal(tokens, golden["out_generate_beam3_tokens"])
    close(scores, golden["out_generate_beam3_scores"])


def test_written_answers_do_not_depend_on_the_batch(golden: dict[str, Tensor]) -> None:
    model, inputs = build(), pair(golden)
    together = model(**inputs)
    for row, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
        one = {name: value[row : row + 1] for name, value in inputs.items()}
        alone = model(
            **{name: value if name == "pixel_values" else value[:, :length] for name, value in one.items()}
        )
        assert alone[0].tolist() == [token for token in together[row].tolist() if token != 0]


# --- checkpoints ---


def test_official_round_trip_is_exact(tmp_path: Path) -> None:
    official = load_file(str(GOLDEN / "blip_vqa_tiny.safetensors"))
    model = build()
    ours = to_official(model)
    assert ours.keys() == official.keys()
    assert all(torch.equal(ours[name], official[name]) for name in official)
    blip.save_official(model, tmp_path / "model.pth")
    again = torch.load(tmp_path / "model.pth", weights_only=True)["model"]
    assert all(torch.equal(again[name], official[name]) for name in official)
    other = blip.build(blip.Options(**SECTION), Form("vqa"))
    report = blip.load_official(other, tmp_path / "model.pth", lambda line: None)
    assert not report.missing and not report.mismatched
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("kind", "form"),
    [("vqa", "vqa"), ("nlvr", "nlvr2"), ("decoder", "captioning"), ("itm", "retrieval")],
)
def test_every_key_and_shape_of_the_published_models(kind: str, form: str) -> None:
    published = json.loads((GOLDEN / "blip_full_288_shapes.json").read_text())[kind]
    with torch.device("meta"):
        model = blip.build(blip.Options(), Form(form, images=2 if form == "nlvr2" else 1))
    ours = {name: list(value.shape) for name, value in to_official(model).items()}
    assert ours.pop("temp", []) == []  # of the retrieval model, not of the matching one
    assert ours == published


@pytest.mark.parametrize("grids", ["24to18", "30to18", "14to24", "3to5"])
def test_resized_positions(grids: str) -> None:
    with np.load(GOLDEN / "blip_positions.npz") as file:
        before, after = (torch.from_numpy(file[f"{side}_{grids}"]) for side in ("in", "out"))
    torch.testing.assert_close(resize_positions(before, after.shape[1]), after, atol=1e-6, rtol=0)


def test_another_resolution_is_resized_and_said() -> None:
    model = blip.build(blip.Options(**{**SECTION, "image_size": 80}), Form("vqa"))
    lines: list[str] = []
    report = blip.load_official(model, GOLDEN / "blip_vqa_tiny.safetensors", lines.append)
    assert len(report.resized) == 1 and "3x3 to 5x5" in lines[0]
    stored = load_file(str(GOLDEN / "blip_vqa_tiny.safetensors"))["visual_encoder.pos_embed"]
    loaded = model.vision_model.embeddings.position_embedding
    assert torch.equal(loaded, resize_positions(stored, 26))


def pretrained(path: Path) -> Path:
    """A file like the one of pre-training: both text models, heads, momentum twins and queues."""
    state = load_file(str(GOLDEN / "blip_vqa_tiny.safetensors"))
    own = blip.build(blip.Options(**SECTION), Form("retrieval")).state_dict()
    state |= {name: own[name] for name in own if name.startswith(("itm_head", "vision_proj", "text_proj"))}
    state |= {"visual_encoder_m.cls_token": torch.zeros(1, 1, 48), "text_proj_m.bias": torch.zeros(256)}
    state |= {"image_queue": torch.zeros(256, 4), "queue_ptr": torch.zeros(1), "temp": torch.tensor(0.05)}
    # text_encoder's cross-attention reads the image there, and so does the decoder's
    for name in [n for n in state if n.startswith("text_decoder.bert.encoder") and ".crossattention." in n]:
        state[name] = state[name.replace("text_decoder.bert", "text_encoder")]
    torch.save({"model": state, "epoch": 19, "config": {"vit": "base"}}, path)
    return path


@pytest.mark.parametrize("form", ["nlvr2", "snli_ve", "retrieval", "captioning"])
def test_from_pretraining_to_any_form(form: str, tmp_path: Path) -> None:
    labels, images = {"snli_ve": 3}.get(form, 2), {"nlvr2": 2}.get(form, 1)
    options = blip.Options(**{**SECTION, "merge_layer_from": 1})
    model = blip.build(options, Form(form, labels, images))
    lines: list[str] = []
    report = blip.load_official(model, pretrained(tmp_path / "model_base.pth"), lines.append)
    fresh = {name.split(".")[0] for name in report.missing}
    assert fresh == (
        {"cls_head", "text_encoder"} if form == "nlvr2" else {"cls_head"} if labels == 3 else set()
    )
    assert "image_queue" in report.unused and "visual_encoder_m.cls_token" in report.unused
    if form == "nlvr2":
        assert all("merge_layer" in n for n in report.missing if n.startswith("text_encoder"))
        attention = model.text_encoder.encoder.layer[0].crossattention
        assert torch.equal(attention.self0.query.weight, attention.self1.query.weight)
        assert torch.equal(attention.output.dense0.bias, attention.output.dense1.bias)
    if form == "retrieval":
        assert model.temp == torch.tensor(0.05)


def test_a_file_of_other_sizes_is_refused_by_name() -> None:
    text = {"config": {**SECTION["text"]["config"], "intermediate_size": 32}}
    model = blip.build(blip.Options(**{**SECTION, "text": text}), Form("vqa"))
    with pytest.raises(UserError, match=r"intermediate\.dense\.weight"):
        blip.load_official(model, GOLDEN / "blip_vqa_tiny.safetensors", lambda line: None)


@pytest.mark.parametrize("shape", [(1, 8, 48), (1, 1, 48), (10, 48), (48,), ()])
def test_positions_of_no_grid_are_refused_by_name(shape: tuple[int, ...], tmp_path: Path) -> None:
    state = load_file(str(GOLDEN / "blip_vqa_tiny.safetensors"))
    torch.save({"model": {**state, "visual_encoder.pos_embed": torch.zeros(shape)}}, tmp_path / "odd.pth")
    model = blip.build(blip.Options(**SECTION), Form("vqa"))
    with pytest.raises(UserError, match="position_embedding") as caught:
        blip.load_official(model, tmp_path / "odd.pth", lambda line: None)
    assert str(shape) in str(caught.value)


def test_a_file_without_the_decoder_is_refused(tmp_path: Path) -> None:
    state = load_file(str(GOLDEN / "blip_vqa_tiny.safetensors"))
    torch.save({"model": {k: v for k, v in state.items() if "decoder" not in k}}, tmp_path / "itm.pth")
    with pytest.raises(UserError, match="missing: text_decoder"):
        blip.load_official(blip.build(blip.Options(**SECTION), Form("vqa")), tmp_path / "itm.pth", print)


# --- options ---


class Tokenizer:
    pad_token_id, sep_token_id = 1, 3

    def __init__(self, words: list[str]) -> None:
        self.words = words

    def __len__(self) -> int:
        return len(self.words)

    def get_vocab(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.words)}


def test_fit_to_a_tokenizer_without_the_special_tokens() -> None:
    section = blip.fit_to_tokenizer(
        {"image_size": 32, "text": {"config": {"hidden_size": 24}}}, Tokenizer(list("abcdef"))
    )
    options = blip.Options(**section)
    assert options.text.config.vocab_size == 8 and (options.dec_id, options.enc_id) == (6, 7)
    assert (options.text.config.pad_token_id, options.text.config.sep_token_id) == (1, 3)
    assert options.text.config.hidden_size == 24 and options.image_size == 32


def test_fit_to_a_tokenizer_that_has_them() -> None:
    options = blip.Options(**blip.fit_to_tokenizer({}, Tokenizer(["a", "[ENC]", "b", "c", "[DEC]"])))
    assert options.text.config.vocab_size == 5 and (options.dec_id, options.enc_id) == (4, 1)


def test_larger_vocabularies_stay() -> None:
    section = {"text": {"config": {"vocab_size": 100}}}
    options = blip.Options(**blip.fit_to_tokenizer(section, Tokenizer(list("abcdef"))))
    assert options.text.config.vocab_size == 100 and (options.dec_id, options.enc_id) == (6, 7)


def test_defaults_are_those_of_the_official_model() -> None:
    options = blip.Options()
    assert (options.dec_id, options.enc_id) == (30522, 30523)
    with torch.device("meta"):
        model = blip.build(options, Form("vqa"))
    layer = model.text_encoder.encoder.layer[0]
    assert layer.attention.self.num_attention_heads == 12 and layer.attention.output.dropout.p == 0.1
    assert layer.output.LayerNorm.eps == 1e-12 and model.vision_model.post_layernorm.eps == 1e-6
    assert model.drop_path_rates[-1] == pytest.approx(0.1) and model.drop_path_rates[0] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 50}, "patch size"),
        ({"max_text_length": 41}, "positions"),
        ({"enc_token_id": 52}, "vocabulary"),
        ({"vision": {"config": {"hidden_size": 50, "num_attention_heads": 3}}}, "multiple"),
        ({"vision": {"config": {"hidden_act": "nonsense"}}}, "nonsense"),
    ],
)
def test_what_cannot_be_built_is_said(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        blip.build(blip.Options(**{**SECTION, **changes}), Form("vqa"))


def test_a_prompt_as_long_as_the_output_is_refused() -> None:
    form = Form("captioning", prompt_tokens=4, decoding=Decoding(max_length=4, min_length=1))
    with pytest.raises(UserError, match="no room"):
        blip.build(blip.Options(**SECTION), form)
