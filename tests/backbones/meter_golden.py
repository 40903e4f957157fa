"""METER in the sizes of the reference data, and that data."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smarttrim_cli.backbones import meter
from smarttrim_cli.forms import Form

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
TINY = GOLDEN / "meter_tiny.safetensors"
"""Official weights with all heads."""

FORMS = {
    "vqa": Form("vqa", 11),
    "nlvr2": Form("nlvr2", 2, images=2),
    "snli_ve": Form("snli_ve", 3),
    "retrieval": Form("retrieval"),
    "pretraining": Form("pretraining"),
}


def options(**changes: Any) -> meter.Options:
    """Recipe section of the tiny model."""
    vit = {"patch_size": 16, "embed_dim": 128, "depth": 2, "num_heads": 2}
    text = {
        "hidden_size": 96,
        "num_attention_heads": 3,
        "num_hidden_layers": 2,
        "intermediate_size": 192,
        "vocab_size": 60,
        "max_position_embeddings": 20,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
    }
    section = {
        "image_size": 48,
        "max_text_length": 17,
        "vision": {"model": "vit_base_patch16_clip_quickgelu_224", "args": vit},
        "text": {"model_type": "roberta", "config": text},
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "num_cross_layers": 2,
    }
    return meter.Options.model_validate({**section, **changes})


def fresh(form: str = "vqa", **changes: Any) -> meter.Meter:
    """The tiny model with random weights."""
    torch.manual_seed(0)
    return meter.build(options(**changes), FORMS[form]).eval()


def loaded(form: str = "vqa") -> meter.Meter:
    """The tiny model with the official weights."""
    model = fresh(form)
    meter.load_official(model, TINY, log=lambda text: None)
    return model


@cache
def arrays(name: str) -> dict[str, Tensor]:
    """An ``.npz`` file of reference data as tensors."""
    with np.load(GOLDEN / name) as content:
        return {key: torch.from_numpy(value) for key, value in content.items()}


def inputs() -> dict[str, Tensor]:
    """Inputs of the tiny model."""
    data = arrays("meter_tiny.npz")
    return {
        "pixel_values": data["in_image"],
        "input_ids": data["in_text_ids"],
        "attention_mask": data["in_text_masks"],
    }
