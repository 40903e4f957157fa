"""Hugging Face folders of BLIP: ``config.json`` and weights, as ``save_pretrained`` writes them.

``BlipForQuestionAnswering``, ``BlipForConditionalGeneration`` and ``BlipForImageTextRetrieval`` have our
names; sizes come from their configuration. The weights of one form start a model of another as official files
do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import BlipConfig

from smarttrim_cli.backbones._blip_checkpoint import place
from smarttrim_cli.backbones._blip_options import TextConfig, VisionConfig
from smarttrim_cli.backbones._loading import LoadReport, Log, read_tensors
from smarttrim_cli.errors import UserError

_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_TOKENIZER = ("tokenizer.json", "vocab.txt")
_NOT_SIZES = {"initializer_range"}
"""Transformers' default for new weights of the vision encoder is all but zero: ours is used instead."""


def section_from_hf(folder: str | Path) -> dict[str, Any]:
    """The recipe section of the backbone that a folder holds.

    Raises:
        UserError: It is not a folder of a BLIP model.
    """
    folder = Path(folder)
    config: Any = _read_config(folder / "config.json")
    section: dict[str, Any] = {
        "image_size": config.vision_config.image_size,
        "vision": {"config": _fields(VisionConfig, config.vision_config)},
        "text": {"config": _fields(TextConfig, config.text_config)},
        "image_text_hidden_size": config.image_text_hidden_size,
    }
    if any((folder / name).is_file() for name in _TOKENIZER):
        section["tokenizer"] = str(folder)
    return section


def _read_config(file: Path) -> BlipConfig:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["model_type"] != "blip":
            raise UserError(f"a model of type {content['model_type']!r}, not 'blip'", where=str(file))
        return BlipConfig.from_dict(content)
    except UserError:
        raise
    except Exception as error:  # of wrong values transformers raises classes that depend on its version
        reason = " ".join(str(error).split())
        raise UserError(f"not the configuration of a BLIP model: {reason}", where=str(file)) from error


def _fields(schema: Any, config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in schema.model_fields if name not in _NOT_SIZES}


def load_hf(model: Any, folder: str | Path, log: Log) -> LoadReport:
    """Load the weights of a folder.

    Raises:
        UserError: There are none, they are damaged, or do not fit the sizes of the model.
    """
    folder = Path(folder)
    files = next((found for pattern in _WEIGHTS if (found := sorted(folder.glob(pattern)))), [])
    if not files:
        raise UserError(f"no weights ({' or '.join(_WEIGHTS)})", where=str(folder))
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= read_tensors(file)
    unused = sorted(name for name in tensors if name.endswith(".position_ids"))
    for name in unused:
        del tensors[name]
    return place(model, tensors, where=str(folder), unused=unused, log=log)
