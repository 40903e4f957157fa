"""Where a BLIP starts besides official files: another task's vocabulary, a ViT with timm's names."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch.testing import assert_close

from smarttrim_cli import registry
from smarttrim_cli.backbones import blip
from smarttrim_cli.errors import UserError
from tests import tiny


def model_of(vocab_size: int = 62, form: str = "vqa", **vision: Any) -> Any:
    section = tiny.BACKBONES["blip"]["plain"]
    text = {"config": {**section["text"]["config"], "vocab_size": vocab_size}}
    sizes = {"config": {**section["vision"]["config"], **vision}}
    options = registry.options("backbones", {"name": "blip", **section, "text": text, "vision": sizes})
    return tiny.enliven(blip.build(options, tiny.FORMS[form]), vocab_size).eval()


def test_known_words_and_special_tokens_keep_their_embeddings() -> None:
    old, new = model_of(62), model_of(70)
    tensors = blip.carry_vocabulary(new, old.state_dict(), old.options)
    for name in ("text_encoder.embeddings.word_embeddings.weight", "text_decoder.cls.predictions.bias"):
        before, after, fresh = old.state_dict()[name], tensors[name], new.state_dict()[name]
        assert torch.equal(after[:60], before[:60])
        assert torch.equal(after[68:], before[60:])  # [DEC] and [ENC] lie behind the words
        assert torch.equal(after[60:68], fresh[60:68])
    new.load_state_dict(tensors)
    inputs = tiny.ragged_inputs(old)
    with torch.no_grad():
        expected, found = old(**inputs), new(**inputs)
    assert_close(found[..., :60], expected[..., :60], rtol=0, atol=1e-5)


def test_the_vision_encoder_starts_from_a_timm_vit() -> None:
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=4,
        mlp_ratio=2,
        num_classes=0,
    )
    tiny.enliven(vit).eval()
    pixels = torch.randn(2, 3, 32, 32)
    for prefix in ("", "vit_model."):
        model = model_of()
        blip.load_vision(model, {prefix + n: t for n, t in vit.state_dict().items()}, "file")
        with torch.no_grad():
            found = model.vision_model(pixels).last_hidden_state
            assert_close(found, vit.forward_features(pixels), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "sizes", [{"num_hidden_layers": 1}, {"num_hidden_layers": 3}, {"intermediate_size": 96}]
)
def test_a_vit_of_other_sizes_is_refused(sizes: dict[str, int]) -> None:
    tensors = {f"vit_model.{n}": t for n, t in tiny.meter().vit_model.state_dict().items()}
    with pytest.raises(UserError, match="not a ViT of this vision encoder's sizes"):
        blip.load_vision(model_of(**sizes), tensors, "file")
