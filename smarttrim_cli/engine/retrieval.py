"""Retrieval in two stages: features choose candidates, matching ranks them. Each mode has its own candidates.

Source: ``evaluation`` of the official ``train_retrieval.py`` (BLIP). As there: the k nearest texts of every
image and the k nearest images of every text are matched, a score is the matching logit plus the similarity of
the features, what is no candidate is never found. An image is encoded once for its feature and all its texts,
and its tokens are kept on the CPU between the stages. Unlike there: a pair that is a candidate in both
directions is scored once, and ties count against the model (:mod:`smarttrim_cli.metrics.recall`).

Costs are per image, with its own texts in the first stage and all its candidates in the second; what the full
model costs is what its own candidates cost, where it was run.
Legend: I images, T texts, E feature width, K candidates of an image, k per query, L text tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from smarttrim_cli.engine.artifact import Bundle
from smarttrim_cli.engine.inference import Predictions, add_costs, device_of, no_numbers, to_device
from smarttrim_cli.engine.loading import Loader
from smarttrim_cli.engine.report import Reporter
from smarttrim_cli.errors import UserError
from smarttrim_cli.metrics.recall import ScoreMatrix
from smarttrim_cli.pruning.cost import double_counts, full_counts, macs_by_part, total_macs
from smarttrim_cli.pruning.decisions import Decisions
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.sites import Architecture, Site
from smarttrim_cli.tasks._data import instance_ids
from smarttrim_cli.tasks._gallery import Gallery

_FEATURES_AT_ONCE = 256
_IMAGE = ("vision",)
"""Streams of the first stage."""


@dataclass(frozen=True)
class Query:
    """An image after the first stage; ``decisions`` is None in mode ``full``."""

    place: int
    id: int | str
    encoded: Any
    decisions: Decisions | None


@dataclass(frozen=True)
class Texts:
    """The texts of a gallery: tokens (T, L) on the CPU, features (T, E) where the model is."""

    ids: Tensor
    mask: Tensor
    features: Tensor

    def of(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of some of them, (K, L), without padding that none needs."""
        mask = self.mask[places]
        longest = int(mask.sum(1).max())
        return self.ids[places, :longest], mask[:, :longest]


@torch.no_grad()
def predict_in_two_stages(
    bundle: Bundle, loader: Loader, modes: tuple[str, ...], reporter: Reporter, label: str
) -> dict[str, Predictions]:
    """Predictions of a two-stage task, an instance per image; the model should be in evaluation mode.

    Raises:
        UserError: No image can be used.
        SmartTrimError: The model's scores are not numbers.
    """
    results, done = {}, 0
    expected = len(loader.dataset)
    with reporter.track(2 * expected * len(modes), label) as tracker:

        def advance() -> None:
            nonlocal done
            done += 1
            tracker.update(done)

        for mode in modes:
            queries = list(_first_stage(bundle, loader, mode, advance))
            if not queries:
                raise UserError(f"none of the {expected} instances can be used: their images are broken")
            gallery = loader.dataset.gallery.part([query.place for query in queries])
            results[mode] = _second_stage(bundle, gallery, queries, mode, advance)
            results[mode].skipped = expected - len(queries)
    if "full" in results:
        for result in results.values():
            result.full_macs, result.full_parts = results["full"].macs, results["full"].parts
    return results


def _first_stage(bundle: Bundle, loader: Loader, mode: str, advance: Callable[[], None]) -> Iterator[Query]:
    """Every image, encoded alone: its tokens stay together until it is matched."""
    device = device_of(bundle.model)
    for batch in loader:
        batch = to_device(batch, device)
        for row, block in enumerate(batch.samples):
            own = slice(row, row + 1)
            inputs = {"pixel_values": batch.inputs["pixel_values"][own]}
            forward = bundle.model(inputs, mode, instance_ids=batch.instance_ids[own])
            decisions = None if mode == "full" else forward.decisions
            yield Query(block.image, block.id, forward.output.to("cpu"), decisions)
            advance()


def _second_stage(
    bundle: Bundle, gallery: Gallery, queries: Sequence[Query], mode: str, advance: Callable[[], None]
) -> Predictions:
    """Candidates of every image and text, matched image by image."""
    task: Any = bundle.task
    device = device_of(bundle.model)
    texts = _texts(bundle, gallery)
    images_IE = torch.cat([query.encoded.features for query in queries]).to(device)
    to_texts_IT, to_images_IT = candidates(images_IE, texts.features, task.num_candidates)
    image_to_text, text_to_image = (ScoreMatrix(gallery.image_of_text) for _ in range(2))
    result, costs = Predictions(), []
    own_texts = gallery.places_of_texts()
    for image, query in enumerate(queries):
        places = (to_texts_IT[image] | to_images_IT[image]).nonzero().squeeze(1)
        ids_KL, mask_KL = texts.of(places)
        logits_K, passes = _match(bundle, query, ids_KL, mask_KL, mode)
        scores_K = (logits_K + texts.features[places.to(device)] @ images_IE[image]).cpu()
        if bool(scores_K.isnan().any()):
            raise no_numbers([query.id])
        for matrix, chosen_IT in ((image_to_text, to_texts_IT), (text_to_image, to_images_IT)):
            own_K = scores_K.masked_fill(~chosen_IT[image, places], -math.inf)
            matrix.add([image], places.tolist(), own_K[None].numpy())
        lengths = texts.mask[own_texts[image]].sum(1), mask_KL.sum(1)
        costs.append(_add_image(result, bundle.model, query, passes, *lengths))
        advance()
    result.records = task.ranked(gallery, image_to_text, text_to_image, costs)
    return result


def candidates(images_IE: Tensor, texts_TE: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Which pairs are candidates: the nearest texts of images, the nearest images of texts; boolean (I, T).

    Args:
        images_IE: Features.
        texts_TE: Features.
        number: Candidates per query, k.
    """
    to_texts_IT = _nearest(images_IE, texts_TE, number)
    return to_texts_IT, _nearest(texts_TE, images_IE, number).T


def _nearest(queries_QE: Tensor, others_NE: Tensor, number: int) -> Tensor:
    """Boolean (Q, N), on the CPU; similarities are computed in blocks of queries."""
    found_QN = torch.zeros(len(queries_QE), len(others_NE), dtype=torch.bool)
    number = min(number, len(others_NE))
    for first in range(0, len(queries_QE), _FEATURES_AT_ONCE):
        block = slice(first, first + _FEATURES_AT_ONCE)
        nearest = (queries_QE[block] @ others_NE.T).topk(number, dim=1).indices.cpu()
        found_QN[block] = found_QN[block].scatter(1, nearest, True)
    return found_QN


def _texts(bundle: Bundle, gallery: Gallery) -> Texts:
    task: Any = bundle.task
    ids_TL, mask_TL = task.text_inputs(gallery, bundle.processor)
    device, features = device_of(bundle.model), []
    for first in range(0, len(ids_TL), _FEATURES_AT_ONCE):
        block = slice(first, first + _FEATURES_AT_ONCE)
        features.append(
            bundle.model.backbone.contrastive_features(
                input_ids=ids_TL[block].to(device), attention_mask=mask_TL[block].to(device)
            )
        )
    return Texts(ids_TL, mask_TL, torch.cat(features))


def _match(
    bundle: Bundle, query: Query, ids_KL: Tensor, mask_KL: Tensor, mode: str
) -> tuple[Tensor, list[Decisions]]:
    """Matching logits (K,) of an image with texts, in blocks, and what was decided in each."""
    task: Any = bundle.task
    device, size = device_of(bundle.model), task.block_size
    images, scores, passes = query.encoded.to(device), [], []
    for first in range(0, len(ids_KL), size):
        block = slice(first, first + size)
        inputs = {
            "images": images,
            "input_ids": ids_KL[None, block].to(device),
            "attention_mask": mask_KL[None, block].to(device),
        }
        identity = instance_ids([f"{query.id}/{first}"]).to(device)
        forward = bundle.model(inputs, mode, instance_ids=identity)
        scores.append(forward.output[0].float())
        if mode != "full":
            passes.append(forward.decisions)
    return torch.cat(scores), passes


# --- costs ---


def _add_image(
    result: Predictions,
    model: TrimmedModel,
    query: Query,
    passes: Sequence[Decisions],
    own_lengths: Tensor,
    lengths_K: Tensor,
) -> dict[str, float]:
    """Add an image's costs to a result.

    Args:
        result: Gets MACs, parts and kept fractions.
        model: The model.
        query: The image.
        passes: Decisions of its matching.
        own_lengths: Tokens of the texts that belong to it: their features are paid for here.
        lengths_K: Tokens of its candidates.

    Returns:
        ``pairs`` (number), ``first_stage_gmacs`` and ``second_stage_gmacs``.
    """
    architecture, backbone = model.architecture, model.backbone
    image_macs, text_macs = backbone.feature_macs(own_lengths.double())
    features = {"head": float(image_macs), "text_encoder": float(text_macs.sum())}
    encoder = of_streams(architecture, _IMAGE)
    if query.decisions is None:
        start = {**backbone.token_counts(lengths_K[None].double()), "text.rows": len(lengths_K)}
        counts = full_counts(architecture, start)
        _add_parts(result.parts, macs_by_part(architecture, counts))
        result.macs.append(float(total_macs(architecture, counts)))
        encoding = total_macs(encoder, counts)
    else:
        add_costs(result, model, merged(query.decisions, passes))
        sites = {n: trimmer for n, trimmer in model.sites.items() if Site.parse(n).stream in _IMAGE}
        encoding = total_macs(encoder, double_counts(encoder, query.decisions), sites)
        result.full_macs[-1] += sum(features.values())
        _add_parts(result.full_parts, features)
    result.macs[-1] += sum(features.values())
    _add_parts(result.parts, features)
    first = float(encoding) + sum(features.values())
    return {
        "pairs": len(lengths_K),
        "first_stage_gmacs": first / 1e9,
        "second_stage_gmacs": (result.macs[-1] - first) / 1e9,
    }


def of_streams(architecture: Architecture, streams: Sequence[str]) -> Architecture:
    """The part of a model that deals with some of its streams."""
    return replace(
        architecture,
        layers=tuple(layer for layer in architecture.layers if layer.stream in streams),
        fixed=tuple(cost for cost in architecture.fixed if cost.per_row_of in streams),
        per_token=tuple(cost for cost in architecture.per_token if cost.stream in streams),
    )


def merged(image: Decisions, passes: Sequence[Decisions]) -> Decisions:
    """Decisions of an image and of all its texts as if made in one pass."""

    def joined(name: str) -> dict[str, Tensor]:
        parts = [getattr(one, name) for one in passes]
        return {**getattr(image, name), **{key: torch.cat([part[key] for part in parts]) for key in parts[0]}}

    valid = joined("valid")
    copies = {stream: len(rows) for stream, rows in valid.items() if stream not in image.valid}
    return Decisions(joined("keep"), {}, valid, joined("counts"), {**image.copies, **copies})


def _add_parts(sums: dict[str, float], parts: dict[str, Any]) -> None:
    for part, macs in parts.items():
        sums[part] = sums.get(part, 0.0) + float(macs)
