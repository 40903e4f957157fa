"""Folders that transformers writes load untouched, and give what transformers' own models give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
)

from smarttrim_cli import registry
from smarttrim_cli.backbones import blip
from smarttrim_cli.errors import UserError
from smarttrim_cli.forms import Decoding, Form
from tests.tiny import enliven

DEC, ENC, SEP = 50, 51, 3
LENGTHS = (6, 4)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def config() -> BlipConfig:
    text = {
        "vocab_size": 52,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 40,
        "bos_token_id": DEC,
        "sep_token_id": SEP,
        "eos_token_id": SEP,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "patch_size": 8,
        "image_size": 32,
    }
    return BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=20)


def saved(kind: Any, folder: Path) -> nn.Module:
    torch.manual_seed(0)
    host = enliven(kind(config())).eval()
    host.save_pretrained(folder)
    return host


def load(folder: Path, form: Form) -> blip.Blip:
    section = blip.section_from_hf(folder)
    options = registry.options("backbones", {"name": "blip", "max_text_length": 30, **section})
    model = blip.build(options, form)
    report = blip.load_hf(model, folder, lambda line: None)
    assert set(report.missing) <= {"temp"} and not report.mismatched and not report.unused
    return model.eval()


def inputs() -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(len(LENGTHS), 3, 32, 32, generator=generator)
    texts = [torch.randint(5, 50, (1, length), generator=generator) for length in LENGTHS]
    for text in texts:
        text[0, 0], text[0, -1] = 2, SEP
    return pixels, texts


def batch(texts: list[Tensor]) -> dict[str, Tensor]:
    ids = torch.zeros(len(texts), max(LENGTHS), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : text.shape[1]], mask[row, : text.shape[1]] = text, 1
    return {"input_ids": ids, "attention_mask": mask}


def fused(ids: Tensor) -> Tensor:
    """What transformers has to be given: it puts no [ENC] there itself."""
    return torch.cat((torch.full_like(ids[:, :1], ENC), ids[:, 1:]), 1)


def test_question_answering(tmp_path: Path) -> None:
    host: Any = saved(BlipForQuestionAnswering, tmp_path)
    model = load(tmp_path, Form("vqa", decoding=Decoding(num_beams=1, max_length=12, min_length=1)))
    pixels, questions = inputs()
    answers = torch.tensor([[[2, 7, 9, SEP], [2, 30, SEP, 0]], [[2, 8, 8, SEP], [2, 41, 5, SEP]]])
    logits = model(
        pixel_values=pixels, **batch(questions), answer_ids=answers, answer_mask=answers.ne(0).long()
    )
    written = model(pixel_values=pixels, **batch(questions))
    for row, question in enumerate(questions):  # alone: its cross-attention knows no padding
        image = host.vision_model(pixels[row : row + 1]).last_hidden_state
        states = host.text_encoder(fused(question), encoder_hidden_states=image).last_hidden_state
        for number in range(2):
            ids = answers[row, number : number + 1].clone()
            ids[:, 0] = DEC
            expected = host.text_decoder(ids, encoder_hidden_states=states).logits[0]
            torch.testing.assert_close(logits[row, number], expected, atol=2e-5, rtol=0)
        alone = host.generate(
            fused(question), pixels[row : row + 1], num_beams=1, do_sample=False, max_length=12
        )
        assert [token for token in written[row].tolist() if token] == [t for t in alone[0].tolist() if t]


def test_captioning(tmp_path: Path) -> None:
    host: Any = saved(BlipForConditionalGeneration, tmp_path)
    decoding = Decoding(num_beams=1, max_length=14, min_length=5)
    model = load(tmp_path, Form("captioning", prompt_tokens=3, decoding=decoding))
    pixels, _ = inputs()
    captions = torch.tensor([[[2, 7, 9, 11, SEP]], [[2, 7, 9, 30, SEP]]])
    logits = model(pixel_values=pixels, answer_ids=captions, answer_mask=torch.ones_like(captions))
    ids = captions[:, 0].clone()
    ids[:, 0] = DEC
    torch.testing.assert_close(logits[:, 0], host(pixels, ids).logits, atol=2e-5, rtol=0)

    prompt = torch.tensor([[2, 7, 9], [2, 7, 9]])
    before = prompt.clone()
    ours = model(pixel_values=pixels, prompt_ids=prompt)
    with_end = torch.cat((prompt, torch.full((2, 1), SEP)), 1)
    theirs = host.generate(pixels, with_end, num_beams=1, do_sample=False, max_length=14, min_length=5)
    assert ours.tolist() == theirs.tolist() and torch.equal(prompt, before)


def test_retrieval(tmp_path: Path) -> None:
    host: Any = saved(BlipForImageTextRetrieval, tmp_path)
    model = load(tmp_path, Form("retrieval"))
    pixels, texts = inputs()
    both = {name: value.expand(2, -1, -1) for name, value in batch(texts).items()}
    scores = model(pixel_values=pixels, **both)
    features = (
        model.contrastive_features(pixel_values=pixels),
        model.contrastive_features(**batch(texts)),
    )
    similarity = features[0] @ features[1].T
    assert scores.shape == (2, 2) and features[0].shape == (2, 20)
    for image in range(2):
        for number, text in enumerate(texts):
            one = pixels[image : image + 1]
            expected = host(fused(text), one).itm_score[0, 1]
            torch.testing.assert_close(scores[image, number], expected, atol=2e-5, rtol=0)
            expected = host(text, one, use_itm_head=False).itm_score[0, 0]
            torch.testing.assert_close(similarity[image, number], expected, atol=2e-5, rtol=0)


def test_sizes_and_tokens_come_from_the_folder(tmp_path: Path) -> None:
    saved(BlipForConditionalGeneration, tmp_path)
    section = blip.section_from_hf(tmp_path)
    options = blip.Options(**section)
    assert options.image_size == 32 and options.image_text_hidden_size == 20 and "tokenizer" not in section
    assert options.text.config.num_attention_heads == 4 and options.vision.config.patch_size == 8
    assert options.vision.config.layer_norm_eps == 1e-5  # as the folder says, not as the official code has it
    assert (options.dec_id, options.enc_id) == (DEC, ENC)
    (tmp_path / "vocab.txt").write_text("[PAD]")
    assert blip.section_from_hf(tmp_path)["tokenizer"] == str(tmp_path)


def test_a_file_of_torch_instead_of_safetensors(tmp_path: Path) -> None:
    host = saved(BlipForConditionalGeneration, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(host.state_dict(), tmp_path / "pytorch_model.bin")
    model = load(tmp_path, Form("captioning"))
    assert torch.equal(model.vision_model.post_layernorm.bias, host.vision_model.post_layernorm.bias)


def test_a_folder_of_one_form_starts_another(tmp_path: Path) -> None:
    saved(BlipForImageTextRetrieval, tmp_path)
    options = blip.Options(**{**blip.section_from_hf(tmp_path), "max_text_length": 30, "merge_layer_from": 1})
    model = blip.build(options, Form("nlvr2", images=2))
    report = blip.load_hf(model, tmp_path, lambda line: None)
    assert {name.split(".")[0] for name in report.missing} == {"cls_head", "text_encoder"}
    assert "itm_head.weight" in report.unused


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the configuration"):
        blip.section_from_hf(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="of type 'bert'"):
        blip.section_from_hf(tmp_path)
    with pytest.raises(UserError, match="no weights"):
        blip.load_hf(None, tmp_path, print)


@pytest.mark.parametrize(
    "wrong", [{"hidden_size": "wide"}, {"num_hidden_layers": [3]}, {"hidden_size": None}]
)
def test_a_configuration_with_values_of_the_wrong_kind(tmp_path: Path, wrong: dict[str, Any]) -> None:
    content = {"model_type": "blip", "text_config": {"hidden_size": 32, **wrong}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"config\.json: not the configuration of a BLIP model"):
        blip.section_from_hf(tmp_path)
