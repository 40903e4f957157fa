"""Tiny models for tests: one configuration per backbone and variant, lively weights, ragged inputs.

A new backbone needs an entry in ``BACKBONES`` and nothing else; contracts pick it up and fail with a clear
message as long as it has none. A new trimmer needs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smarttrim_cli import registry
from smarttrim_cli.pruning.decisions import Decisions
from smarttrim_cli.pruning.model import TrimmedModel, build_trimmers

NUM_LABELS = 5
TEXT_TOKENS = 9
LENGTHS = (9, 4, 7, 2, 9)
"""Real text tokens of the instances of :func:`ragged_inputs`."""

_VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
_TEXT = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "vocab_size": 60,
    "max_position_embeddings": 40,
}


def _meter(model: str = "vit_tiny_patch16_224", text: str = "roberta", **vit: Any) -> dict[str, Any]:
    types = 1 if text == "roberta" else 2
    return {
        "image_size": 32,
        "max_text_length": 30,
        "vision": {"model": model, "args": {**_VIT, **vit}},
        "text": {"model_type": text, "config": {**_TEXT, "type_vocab_size": types}},
        "hidden_size": 40,
        "num_attention_heads": 4,
        "intermediate_size": 72,
        "num_cross_layers": 2,
    }


BACKBONES: dict[str, dict[str, dict[str, Any]]] = {
    "meter": {
        "plain": _meter(),
        "layer_scale": _meter(init_values=0.5),
        "qk_norm": _meter(qk_norm=True),
        "clip": _meter("vit_base_patch16_clip_quickgelu_224"),
        "bert": _meter(text="bert"),
    }
}
"""Options per backbone and variant. The first variant of each is the one for tests that need a single one."""


@dataclass(frozen=True)
class Variant:
    """A tiny configuration of a backbone; ``options`` is None where ``BACKBONES`` lacks the backbone."""

    backbone: str
    variant: str
    options: dict[str, Any] | None = field(hash=False)

    def __str__(self) -> str:
        return f"{self.backbone}-{self.variant}"

    def build(self, seed: int = 0) -> nn.Module:
        """The host model in evaluation mode, with weights that make every part matter."""
        if self.options is None:
            pytest.fail(
                f"backbone {self.backbone!r} has no tiny configuration: add one to tests/tiny.py", False
            )
        options = registry.options("backbones", {"name": self.backbone, **self.options})
        torch.manual_seed(seed)
        host = registry.load("backbones", self.backbone).build(options, NUM_LABELS)
        return enliven(host, seed).eval()


def variants() -> list[Variant]:
    """Every variant of every backbone of the package."""
    return [
        Variant(name, variant, options)
        for name in registry.names("backbones")
        for variant, options in BACKBONES.get(name, {"missing": None}).items()  # type: ignore[dict-item]
    ]


def first_variants() -> list[Variant]:
    """One variant of every backbone."""
    return list({variant.backbone: variant for variant in reversed(variants())}.values())


@cache
def trimmers(scores: str) -> list[str]:
    """Names of the trimmers of the package that score ``token`` or ``head``."""
    return [n for n in registry.names("trimmers") if scores == registry.load("trimmers", n).SCORES]


def pairs() -> list[tuple[str, str]]:
    """Every token trimmer with every head trimmer."""
    return [(token, head) for token in trimmers("token") for head in trimmers("head")]


def enliven(host: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of unit gain, biases and norms off 0 and 1: small initial weights would hide every mistake."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in host.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() >= 2 and "embed" not in name:
            parameter.data = 1.2 * noise / parameter[0].numel() ** 0.5
        elif parameter.dim() >= 2:
            parameter.data = 0.7 * noise
        else:
            parameter.data = parameter.data + 0.3 * noise
    return host


def attach(
    host: nn.Module, token: str, head: str, seed: int = 0, kept: float = 0.6, lively: bool = True
) -> TrimmedModel:
    """Trimmers on every site of a host; lively ones have large weights: decisions differ by instance."""

    def builder(name: str) -> Any:
        plugin, options = registry.load("trimmers", name), registry.options("trimmers", {"name": name})
        return lambda site: plugin.build(options, site)

    architecture = host.architecture()
    groups = sorted({site.group for site in architecture.sites()})
    model = TrimmedModel(host, build_trimmers(architecture, groups, builder(token), builder(head)))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.trimmers.parameters() if lively else ():
        parameter.data = (
            torch.randn(parameter.shape, generator=generator) / max(parameter.shape[-1], 2) ** 0.5 * 1.5
        )
    model.set_targets(dict.fromkeys(groups, kept))
    return model.eval()


def paper_model(seed: int = 0, lively: bool = True) -> TrimmedModel:
    """The first variant of METER with the trimmers of the paper."""
    host = Variant("meter", "plain", BACKBONES["meter"]["plain"]).build(seed)
    return attach(host, "cross_modal", "global_head", lively=lively)


def pad_id(host: nn.Module) -> int:
    """Token id on padding."""
    config = next(m.config for m in host.modules() if hasattr(getattr(m, "config", None), "pad_token_id"))
    return int(config.pad_token_id)


def ragged_inputs(host: nn.Module, seed: int = 0, extra: int = 0) -> dict[str, Tensor]:
    """A batch of instances with ``LENGTHS`` text tokens, padded to the longest and ``extra`` more."""
    inputs = host.example_inputs(TEXT_TOKENS + extra, batch=len(LENGTHS), seed=seed)
    shortest = host.example_inputs(TEXT_TOKENS, batch=len(LENGTHS), seed=seed)
    inputs["pixel_values"] = shortest["pixel_values"]
    inputs["input_ids"][:, :TEXT_TOKENS] = shortest["input_ids"]
    for row, length in enumerate(LENGTHS):
        inputs["input_ids"][row, length:] = pad_id(host)
        inputs["attention_mask"][row, length:] = 0
    return inputs


def instance(inputs: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """One instance as a batch of its own, without padding."""
    length = int(inputs["attention_mask"][index].sum())
    one = {name: tensor[index : index + 1] for name, tensor in inputs.items()}
    return {name: t[:, :length] if name in ("input_ids", "attention_mask") else t for name, t in one.items()}


def ids(batch: int = len(LENGTHS)) -> Tensor:
    """Identities of the instances of a batch."""
    return torch.arange(batch) * 7919 + 3


def random_decisions(model: TrimmedModel, inputs: dict[str, Tensor], seed: int = 0) -> Decisions:
    """Decisions of every density, drawn per instance and site: all dropped, few, many and all kept occur."""
    generator = torch.Generator().manual_seed(seed)
    log = model(inputs, "masked").decisions
    for name, keep in log.keep.items():
        share = torch.tensor([0.0, 0.3, 0.7, 1.0])[
            torch.randint(0, 4, (keep.shape[0], 1), generator=generator)
        ]
        log.keep[name] = torch.rand(keep.shape, generator=generator) < share
    return log


def margin_B(log: Decisions, batch: int = len(LENGTHS)) -> Tensor:
    """Smallest distance of any score to threshold 0, per instance; NaN (dropped before) does not count."""
    smallest = torch.full((batch,), float("inf"))
    for scores in log.scores.values():
        smallest = torch.minimum(smallest, scores.abs().nan_to_num(float("inf")).amin(1))
    return smallest
