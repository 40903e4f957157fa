"""Sizes of the study's smaller models: layers or image pixels for a MACs ratio, and what they cost.

Trimmed models meet a ratio by their threshold; a smaller one can only come near it. All sizes there are get
their MACs, and the nearest is taken; of choices of layers within 3 %, one with most of those in which the
modalities meet: students with a single one learn next to nothing. MACs are means over the texts of a split:
exact for METER; where text is generated, the lengths of answers are those of the task's form.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from smarttrim_cli.backbones._keep_layers import layer_depths
from smarttrim_cli.engine.artifact import Bundle, load_model
from smarttrim_cli.engine.build import section_of
from smarttrim_cli.engine.plan import backbone_without_data
from smarttrim_cli.engine.student import layers_of
from smarttrim_cli.pruning.cost import full_counts, total_macs
from smarttrim_cli.recipe import Recipe, load_recipe

Lengths = Mapping[int, int]
"""Number of text tokens to the number of instances that have so many."""

Rank = tuple[float, float]
"""Of choices that cost the same the lowest is taken."""

_GOOD_ENOUGH = math.log(1.03)


def size_overrides(
    path: Path, overrides: Sequence[str], size: str, ratio: float, lengths: Lengths
) -> dict[str, Any]:
    """Override that makes the model of a recipe smaller, so that its MACs come nearest to a ratio.

    Args:
        path: The recipe.
        overrides: Of the recipe.
        size: ``depth`` (``backbone.keep_layers``) or ``resolution`` (``backbone.image_size``).
        ratio: MACs of the full model over those of the smaller one.
        lengths: Of :func:`text_lengths`.
    """
    full = load_recipe(path, overrides)

    def macs(more: str) -> float:
        return mean_macs(
            backbone_without_data(load_recipe(path, [*overrides, more] if more else overrides)), lengths
        )

    goal = macs("") / ratio
    found = _depths(full, macs) if size == "depth" else _resolutions(full, macs)
    ranked = [
        (max(abs(math.log(cost / goal)), _GOOD_ENOUGH), rank, abs(math.log(cost / goal)), more)
        for more, cost, rank in found
    ]
    key, _, value = min(ranked)[3].partition("=")
    return {key: value}


def _depths(full: Recipe, macs: Callable[[str], float]) -> Iterator[tuple[str, float, Rank]]:
    """All choices of layers, their costs, and ranks: most layers of the last kind, then the most even.

    In layers of the last kind the modalities meet. Layers of a kind cost the same, so that one smaller model
    of each kind is enough to know all costs.
    """
    name, whole = full.backbone.name, macs("")
    depths = layer_depths(backbone_without_data(full).state_dict(), layers_of(name))
    kinds = [kind for kind, depth in depths.items() if depth]
    of_one = {
        kind: (whole - macs(_keep({kind: [0]}))) / (depths[kind] - 1) for kind in kinds if depths[kind] > 1
    }
    for kept in itertools.product(*(range(1, depths[kind] + 1) for kind in kinds)):
        chosen = dict(zip(kinds, kept, strict=True))
        cost = whole - sum(each * (depths[kind] - chosen[kind]) for kind, each in of_one.items())
        shares = [chosen[kind] / depths[kind] for kind in kinds]
        layers = {kind: spread(number, depths[kind]) for kind, number in chosen.items()}
        yield _keep(layers), cost, (-shares[-1], max(shares) - min(shares))


def spread(kept: int, depth: int) -> list[int]:
    """Numbers of the layers that stay: evenly spread; the first one keeps the input that it knows."""
    return [place * depth // kept for place in range(kept)]


def _keep(layers: dict[str, list[int]]) -> str:
    return f"backbone.keep_layers={json.dumps(layers)}"


def _resolutions(full: Recipe, macs: Callable[[str], float]) -> Iterator[tuple[str, float, Rank]]:
    backbone = backbone_without_data(full)
    first = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    patch = int(first.stride[0])
    for pixels in range(patch, backbone.options.image_size + 1, patch):
        more = f"backbone.image_size={pixels}"
        yield more, macs(more), (0.0, 0.0)


def measured_gmacs(run: Path, split: str) -> float:
    """Mean GMACs per instance of a run's full model on a split."""
    bundle = _open(run)
    return mean_macs(bundle.model.backbone, _lengths(bundle, split)) / 1e9


def text_lengths(run: Path, split: str) -> Lengths:
    """How many instances of a split have so many text tokens, as a run's model gets them."""
    return _lengths(_open(run), split)


def mean_macs(backbone: Any, lengths: Lengths) -> float:
    """Mean MACs of the full model over instances with these numbers of text tokens."""
    architecture = backbone.architecture()
    total = sum(
        number * float(total_macs(architecture, full_counts(architecture, backbone.token_counts(length))))
        for length, number in lengths.items()
    )
    return total / sum(lengths.values())


def _open(run: Path) -> Bundle:
    recipe = load_recipe(run / "recipe.yaml")
    return load_model(run / "model", section_of(recipe.task), lambda text: None)


def _lengths(bundle: Bundle, split: str) -> Lengths:
    texts = bundle.task.questions(bundle.task.split_name(split))
    if not texts:  # what the backbone reads is always the same
        return {bundle.task.form.text_tokens: 1}
    encoded = bundle.processor.tokenizer(texts, truncation=True, max_length=bundle.processor.max_text_length)
    return Counter(len(ids) for ids in encoded["input_ids"])
