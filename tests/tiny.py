"""Tiny models for tests: one configuration per backbone and variant, lively weights, ragged inputs.

A new backbone needs an entry in ``BACKBONES`` and nothing else; contracts pick it up and fail with a clear
message as long as it has none. A new trimmer needs nothing.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smarttrim_cli import registry
from smarttrim_cli.forms import GENERATES, Decoding, Form
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


_BLIP = {
    "image_size": 32,
    "max_text_length": 30,
    "vision": {
        "config": {
            "patch_size": 8,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
        }
    },
    "text": {
        "config": {
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 48,
            "vocab_size": 62,
            "max_position_embeddings": 40,
            "pad_token_id": 0,
            "sep_token_id": 2,
        }
    },
}

FORMS = {
    "vqa": Form("vqa", NUM_LABELS, new_tokens=4, decoding=Decoding(3, 5, 5, NUM_LABELS, rank=True)),
    "nlvr2": Form("nlvr2", 2, images=2),
    "snli_ve": Form("snli_ve", 3),
    "retrieval": Form("retrieval"),
    "captioning": Form("captioning", prompt_tokens=3, new_tokens=4, decoding=Decoding(3, 7, 7)),
}
"""A small form of every kind; what is generated has a fixed length."""

BACKBONES: dict[str, dict[str, dict[str, Any]]] = {
    "meter": {
        "plain": _meter(),
        "layer_scale": _meter(init_values=0.5),
        "qk_norm": _meter(qk_norm=True),
        "clip": _meter("vit_base_patch16_clip_quickgelu_224"),
        "bert": _meter(text="bert"),
        "swin": {
            **_meter(),
            "vision": {
                "model": "swin_tiny_patch4_window7_224",
                "args": {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
            },
        },
    },
    "blip": {"plain": _BLIP, "guided_by_text_encoder": {**_BLIP, "guidance": "text_encoder"}},
}
"""Options per backbone and variant. The first variant of each is the one for tests that need a single one."""


@dataclass(frozen=True)
class Variant:
    """A tiny configuration of a backbone in one form; ``options`` is None where ``BACKBONES`` lacks it."""

    backbone: str
    variant: str
    options: dict[str, Any] | None = field(hash=False)
    form: str = "vqa"

    def __str__(self) -> str:
        return f"{self.backbone}-{self.variant}" + (f"-{self.form}" if self.form != "vqa" else "")

    def build(self, seed: int = 0) -> nn.Module:
        """The host model in evaluation mode, with weights that make every part matter."""
        if self.options is None:
            pytest.fail(
                f"backbone {self.backbone!r} has no tiny configuration: add one to tests/tiny.py", False
            )
        options = registry.options("backbones", {"name": self.backbone, **self.options})
        torch.manual_seed(seed)
        host = registry.load("backbones", self.backbone).build(options, FORMS[self.form])
        return enliven(host, seed).eval()


METER = Variant("meter", "plain", BACKBONES["meter"]["plain"])


def meter(seed: int = 0) -> nn.Module:
    """A small METER for tests that need one model, whatever it is."""
    return METER.build(seed)


def variants() -> list[Variant]:
    """Every variant of every backbone of the package, and its first one in every further form."""
    found = []
    for name in registry.names("backbones"):
        options: dict[str, Any] = BACKBONES.get(name, {"missing": None})
        found += [Variant(name, variant, own) for variant, own in options.items()]
        first = next(iter(options))
        forms = [form for form in registry.load("backbones", name).FORMS if form != "vqa"]
        found += [Variant(name, first, options[first], form) for form in forms]
    return found


def first_variants() -> list[Variant]:
    """One variant of every backbone."""
    return list({variant.backbone: variant for variant in reversed(variants())}.values())


def one_per_form() -> list[Variant]:
    """The first variant of every backbone, in every form."""
    return list({(v.backbone, v.form): v for v in reversed(variants())}.values())


@cache
def trimmers(scores: str) -> list[str]:
    """Names of the trimmers of the package that score ``token`` or ``head``."""
    return [n for n in registry.names("trimmers") if scores == registry.load("trimmers", n).SCORES]


def pairs() -> list[tuple[str, str]]:
    """Every token trimmer with the learned and the random head trimmer; further ones with two of these."""
    usual = ("global_head", "random_head")
    further = [head for head in trimmers("head") if head not in usual]
    return [(token, head) for token in trimmers("token") for head in usual] + [
        (token, head) for token in ("cross_modal", "random_token") for head in further
    ]


def rank_heads(model: TrimmedModel, share: float) -> TrimmedModel:
    """Give static head trimmers an importance and a share to keep, in every module another number."""
    ranked = {name: trimmer for name, trimmer in model.sites.items() if trimmer.by_importance}
    generator = torch.Generator().manual_seed(3)
    importance = {n: torch.rand(len(t.place_H), generator=generator) for n, t in ranked.items()}
    for name, trimmer in ranked.items():
        trimmer.set_importance(name, importance)
    model.set_targets(dict.fromkeys(model.groups, share))
    return model


def enliven(host: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of unit gain, biases and norms off 0 and 1: small initial weights would hide every mistake."""
    generator = torch.Generator().manual_seed(seed)
    linear = {id(module.weight) for module in host.modules() if isinstance(module, nn.Linear)}
    for name, parameter in host.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() >= 2 and ("embed" not in name or id(parameter) in linear):
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
    return attach(meter(seed), "cross_modal", "global_head", lively=lively)


def pad_id(host: nn.Module) -> int:
    """Token id on padding."""
    config = next(m.config for m in host.modules() if hasattr(getattr(m, "config", None), "pad_token_id"))
    return int(config.pad_token_id)


def ragged_inputs(host: nn.Module, seed: int = 0, extra: int = 0) -> dict[str, Tensor]:
    """A batch of instances with ``LENGTHS`` text tokens, padded to the longest and ``extra`` more.

    Where the backbone generates text, the inputs are those of training: answers of several lengths, padded
    too. ``as_ranking`` and ``as_writing`` make those of the other two ways from them.
    """
    inputs = host.example_inputs(TEXT_TOKENS + extra, batch=len(LENGTHS), seed=seed)
    shortest = host.example_inputs(TEXT_TOKENS, batch=len(LENGTHS), seed=seed)
    inputs["pixel_values"] = shortest["pixel_values"]
    if "input_ids" in inputs:
        inputs["input_ids"][..., :TEXT_TOKENS] = shortest["input_ids"]
        texts = inputs["input_ids"].flatten(0, -2), inputs["attention_mask"].flatten(0, -2)
        for row, (ids_L, mask_L) in enumerate(zip(*texts, strict=True)):
            length = LENGTHS[(row // max(len(texts[0]) // len(LENGTHS), 1) + row) % len(LENGTHS)]
            length = LENGTHS[row] if len(texts[0]) == len(LENGTHS) else length
            ids_L[length:] = pad_id(host)
            mask_L[length:] = 0
    if generates(host):
        inputs.pop("prompt_ids", None)
        inputs.pop("num_steps", None)
        inputs |= answers(host, seed)
    return inputs


def generates(host: nn.Module) -> bool:
    """Whether a host in its form generates text."""
    forms = importlib.import_module(type(host).__module__).FORMS
    return bool(forms.get(host.form.name) == GENERATES)


def answers(host: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Two answers per instance of different lengths (one for captioning), padded."""
    generator = torch.Generator().manual_seed(seed + 1)
    number = 1 if host.form.name == "captioning" else 2
    ids_BAT = torch.randint(4, 50, (len(LENGTHS), number, 6), generator=generator)
    mask_BAT = torch.ones_like(ids_BAT)
    for row in range(len(LENGTHS)):
        for answer in range(number):
            mask_BAT[row, answer, 3 + (row + answer) % 4 :] = 0
    return {"answer_ids": ids_BAT * mask_BAT + pad_id(host) * (1 - mask_BAT), "answer_mask": mask_BAT}


def as_ranking(inputs: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Inputs for ranking ``NUM_LABELS`` candidates."""
    generator = torch.Generator().manual_seed(seed + 2)
    ids_CT = torch.randint(4, 50, (NUM_LABELS, 5), generator=generator)
    mask_CT = torch.ones_like(ids_CT)
    for row in range(NUM_LABELS):
        mask_CT[row, 2 + row % 4 :] = 0
    kept = {name: tensor for name, tensor in inputs.items() if not name.startswith("answer")}
    return {**kept, "candidate_ids": ids_CT * mask_CT, "candidate_mask": mask_CT}


def as_writing(host: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs for generating text."""
    kept = {name: tensor for name, tensor in inputs.items() if not name.startswith("answer")}
    if host.form.name == "captioning":
        kept["prompt_ids"] = torch.tensor([[2, 7, 9]]).repeat(len(inputs["pixel_values"]), 1)
    return kept


def instance(inputs: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """One instance as a batch of its own, without padding of its text."""
    one = chosen(inputs, [index])
    if "attention_mask" in one:
        length = int(one["attention_mask"].sum(-1).max())
        texts = ("input_ids", "attention_mask")
        one = {name: t[..., :length] if name in texts else t for name, t in one.items()}
    return one


def chosen(inputs: dict[str, Tensor], order: list[int]) -> dict[str, Tensor]:
    """Instances in another order; what all share stays."""
    return {name: t if name.startswith("candidate") else t[order] for name, t in inputs.items()}


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


def to_multiples_of_4(rows: int) -> int:
    """In place of ``stream.rounded_up``, which leaves the few rows of tiny models without a tail."""
    return -(-rows // 4) * 4


def margin_B(log: Decisions, batch: int = len(LENGTHS)) -> Tensor:
    """Smallest distance of any score to threshold 0, per instance; NaN (dropped before) does not count."""
    smallest = torch.full((batch,), float("inf"))
    for name, scores in log.scores.items():
        rows_R = scores.abs().nan_to_num(float("inf")).amin(1)
        own_B = log.by_instance(name.split(".")[0], rows_R)
        smallest = torch.minimum(smallest, own_B.amin(-1) if own_B.dim() == 2 else own_B)
    return smallest


def per_instance(log: Decisions, name: str, values: Tensor) -> Tensor:
    """Masks or counts of a site with everything of an instance in one row, (B, ...)."""
    return values.reshape(len(values) // log.copies.get(name.split(".")[0], 1), -1)
