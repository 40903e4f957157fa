"""From a model and its data to what the pictures show: decisions, answers and costs of single instances."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from smarttrim_cli.data.images import Preprocess, load_rgb
from smarttrim_cli.engine.artifact import Bundle
from smarttrim_cli.engine.figures.data import Answer, Box, HeadTable, Instance, LayerMask, Mask, Pixels
from smarttrim_cli.engine.inference import device_of, to_device
from smarttrim_cli.engine.loading import batches_of_places
from smarttrim_cli.engine.relevance import image_tokens_alone
from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.cost import instance_macs
from smarttrim_cli.pruning.decisions import Decisions
from smarttrim_cli.pruning.sites import CROSS_HEAD, CROSS_HEAD_1, SELF_HEAD, TOKEN, Architecture, Site
from smarttrim_cli.tasks.base import Batch, Record

_HEAD_TITLES = {
    SELF_HEAD: "self-attention",
    CROSS_HEAD: "cross-attention",
    CROSS_HEAD_1: "second cross-attention",
}
_QUESTIONS_PER_IMAGE = 4


@dataclass(frozen=True)
class Seen:
    """An instance that the trimmed model has dealt with.

    Attributes:
        index: Place in the split.
        record: Its prediction.
        keep: Site name to keep mask, as in ``Decisions``: (rows, N) or (rows, H) of the instance.
        macs: MACs, trimmed.
        full_macs: MACs of the full model.
    """

    index: int
    record: Record
    keep: Mapping[str, Mask]
    macs: float
    full_macs: float

    @property
    def reduction(self) -> float:
        """How many times fewer MACs than the full model."""
        return self.full_macs / self.macs

    @property
    def patches(self) -> Mask:
        """Patches kept at every vision layer, (layers, patches of all images)."""
        sites = [Site.parse(name) for name in self.keep]
        vision = [site.name for site in sites if (site.stream, site.kind) == ("vision", TOKEN)]
        return np.stack([self.keep[name][:, 1:].ravel() for name in vision])


def spread(indices: Sequence[int], limit: int) -> list[int]:
    """At most ``limit`` of the indices, evenly spaced."""
    if len(indices) <= limit:
        return list(indices)
    return [indices[position * len(indices) // limit] for position in range(limit)]


@torch.no_grad()
def survey(
    bundle: Bundle, dataset: Any, indices: Sequence[int], batch_size: int, done: Callable[[int], None]
) -> Iterator[Seen]:
    """Run the trimmed model over some instances; broken images are left out where the recipe says so."""
    for places, batch in batches_of(bundle, dataset, indices, batch_size, done):
        forward = bundle.model(batch.inputs, "packed", instance_ids=batch.instance_ids)
        records = bundle.task.predict(forward.output, batch, bundle.processor)
        macs_B, full_B = instance_macs(bundle.model, forward.decisions)
        for row, index in enumerate(places):
            keep = forward.decisions.instance(row).keep
            own = {name: mask.cpu().numpy() for name, mask in keep.items()}
            yield Seen(index, records[row], own, float(macs_B[row]), float(full_B[row]))


def batches_of(
    bundle: Bundle, dataset: Any, indices: Sequence[int], batch_size: int, done: Callable[[int], None]
) -> Iterator[tuple[list[int], Batch]]:
    """Batches of some instances, with their places; broken images are left out where the recipe says so.

    In order, but for data sets whose items differ in width (blocks of retrieval).
    """
    device, finished = device_of(bundle.model), 0
    for places in batches_of_places(dataset, indices, batch_size):
        items = [(index, dataset[index]) for index in places]
        items = [(index, item) for index, item in items if item is not None]
        if items:
            batch = bundle.task.collate([item for _, item in items], bundle.processor)
            yield [index for index, _ in items], to_device(batch, device)
        finished += len(places)
        done(finished)


def choose(seen: Sequence[Seen], number: int) -> list[Seen]:
    """Instances evenly over the question types, correctly answered ones first, then in order."""
    by_type: dict[str, list[Seen]] = defaultdict(list)
    for one in sorted(seen, key=lambda one: (-(one.record["score"] or 0.0), one.index)):
        by_type[one.record["type"]].append(one)
    columns = [by_type[kind] for kind in sorted(by_type)]
    rows = itertools.chain.from_iterable(itertools.zip_longest(*columns))
    return [one for one in rows if one is not None][:number]


def questions_by_image(samples: Sequence[Any]) -> dict[str, list[int]]:
    """Image to indices of its questions (a few, with different words), for images with at least two."""
    groups: dict[str, dict[str, int]] = defaultdict(dict)
    for index, sample in enumerate(samples):
        groups[image_key(sample)].setdefault(sample.text, index)
    return {
        image: list(group.values())[:_QUESTIONS_PER_IMAGE]
        for image, group in groups.items()
        if len(group) > 1
    }


def image_key(sample: Any) -> str:
    """What tells the image (or images) of a sample from others."""
    return " ".join(str(image) for image in sample.images)


def most_different(seen: Sequence[Seen], groups: Sequence[Sequence[int]]) -> tuple[Seen, Seen] | None:
    """The two questions about one image, best answered first, whose kept patches differ most over layers."""
    by_index = {one.index: one for one in seen}
    found = [[by_index[index] for index in group if index in by_index] for group in groups]
    pairs = [pair for group in found for pair in itertools.combinations(group, 2)]

    def worth(pair: tuple[Seen, Seen]) -> tuple[float, float]:
        first, second = (one.patches for one in pair)
        differing, either = (first ^ second).sum(1), (first | second).sum(1)
        return sum(one.record["score"] or 0.0 for one in pair), float(
            (differing / np.maximum(either, 1)).mean()
        )

    return max(pairs, key=worth) if pairs else None


@torch.no_grad()
def pictures_of(
    bundle: Bundle, dataset: Any, seen: Seen, boxes: Sequence[Mapping[Any, Any]]
) -> list[Instance]:
    """Everything that is shown of an instance, for each of its images; the full model is asked too.

    Args:
        bundle: The model.
        dataset: The split.
        seen: The instance.
        boxes: By place of the image what instances are about in it, by id; empty where that is not known.
    """
    batch = bundle.task.collate([dataset[seen.index]], bundle.processor)
    batch = to_device(batch, device_of(bundle.model))
    forward = bundle.model(batch.inputs, "packed", instance_ids=batch.instance_ids)
    full = bundle.task.predict(bundle.model(batch.inputs, "full").output, batch, bundle.processor)[0]
    record, sample = seen.record, batch.samples[0]
    several = len(sample.images) > 1
    return [
        _instance(
            bundle,
            np.asarray(load_rgb(image, sample_id=record["id"])),
            batch.inputs,
            forward.decisions,
            number,
            text=_text_of(dataset, sample, record),
            name=f"instance {seen.index}",
            question=record["question"],
            kind="" if record["type"] == "all" else record["type"],
            trimmed=Answer(str(record["prediction"]), record["score"]),
            full=Answer(str(full["prediction"]), full["score"]),
            reference=None if record["reference"] is None else str(record["reference"]),
            boxes=tuple(Box(role, *box) for role, box in _of_image(boxes, number).get(record["id"], ())),
            image_number=number + 1 if several else 0,
        )
        for number, image in enumerate(sample.images)
    ]


@torch.no_grad()
def picture_of_question(bundle: Bundle, image: Image.Image, question: str, name: str) -> Instance:
    """Everything that is shown of a question about the user's own image."""
    inputs = bundle.task.inputs([image], [question], bundle.processor)
    device = device_of(bundle.model)
    inputs = {key: tensor.to(device) for key, tensor in inputs.items()}
    forward, full = bundle.model(inputs, "packed"), bundle.model(inputs, "full")
    task: Any = bundle.task
    return _instance(
        bundle,
        np.asarray(image),
        inputs,
        forward.decisions,
        0,
        text=question,
        name=name,
        question=question,
        kind="",
        trimmed=Answer(task.answer(forward.output, bundle.processor)[0][0]),
        full=Answer(task.answer(full.output, bundle.processor)[0][0]),
        reference=None,
    )


def head_tables(architecture: Architecture, groups: Sequence[str], seen: Sequence[Seen]) -> list[HeadTable]:
    """Mean kept fraction of every head.

    One table per stream and kind of attention that has head trimmers; of layers with as many heads, where
    encoder and co-attention differ.
    """
    sites: dict[tuple[str, str, int], list[Site]] = defaultdict(list)
    for site in architecture.sites(groups):
        if site.kind != TOKEN:
            heads = architecture.layer(site.stream, site.layer).attention(site.kind).heads
            sites[site.kind, site.stream, heads].append(site)
    tables = []
    for (kind, stream, _), found in sorted(
        sites.items(),
        key=lambda entry: (entry[0][0] != SELF_HEAD, entry[0][1] != "vision", entry[1][0].layer),
    ):
        labels = layer_labels(architecture, stream)
        kept = np.stack([np.mean([one.keep[site.name].mean(0) for one in seen], axis=0) for site in found])
        names = [" ".join(map(str, labels[site.layer])) for site in found]
        tables.append(HeadTable(f"{stream} {_HEAD_TITLES[kind]}", names, kept))
    return tables


def layer_labels(architecture: Architecture, stream: str) -> list[tuple[str, int]]:
    """(part, number) of every layer of a stream: ``("vision", 1)``, ..., ``("cross", 1)``, ..."""
    parts = [
        "cross" if spec.part == "cross_modal" else stream
        for spec in architecture.layers
        if spec.stream == stream
    ]
    return [(part, parts[: index + 1].count(part)) for index, part in enumerate(parts)]


def _instance(
    bundle: Bundle,
    image: Pixels,
    inputs: Mapping[str, Tensor],
    decisions: Decisions,
    number: int,
    text: str,
    **rest: Any,
) -> Instance:
    """What is shown of the ``number``-th image of the only instance of a batch; ``text`` is its first."""
    architecture = bundle.model.architecture
    keep = {name: mask[min(number, len(mask) - 1)].cpu().numpy() for name, mask in decisions.keep.items()}
    valid, ids, texts = _text(inputs, decisions)
    patches = keep[Site("vision", 0, TOKEN).name][1:]
    side = math.isqrt(len(patches))
    if side * side != len(patches) or not image_tokens_alone(bundle.model.backbone):
        raise UserError(
            f"the {len(patches) + 1} vision tokens of this backbone are not a CLS and a square of patches"
        )

    def masks(stream: str, lay_out: Callable[[Mask], Mask]) -> list[LayerMask]:
        labels = layer_labels(architecture, stream)
        return [
            LayerMask(*label, lay_out(keep[Site(stream, i, TOKEN).name])) for i, label in enumerate(labels)
        ]

    macs_B, full_B = instance_macs(bundle.model, decisions)
    pixels = inputs["pixel_values"][0].cpu()
    return Instance(
        image=image,
        view=model_view(pixels if pixels.dim() == 3 else pixels[number], bundle.processor.preprocess),
        patches=masks("vision", lambda mask: mask[1:].reshape(side, side)),
        words=[_word(bundle.processor.tokenizer, int(token)) for token in ids],
        word_layers=masks("text", lambda mask: mask[valid][1:]) if len(ids) else [],
        macs=float(macs_B[0]),
        full_macs=float(full_B[0]),
        texts=texts,
        cut=len(ids) > 0 and _tokens(bundle, text) > 1 + len(ids),
        **rest,
    )


def _of_image(boxes: Sequence[Mapping[Any, Any]], number: int) -> Mapping[Any, Any]:
    return boxes[number] if number < len(boxes) else {}


def _text(inputs: Mapping[str, Tensor], decisions: Decisions) -> tuple[Mask, Any, int]:
    """Mask of the real tokens of the (first) text, their ids without the CLS, and the number of texts."""
    if "text" not in decisions.valid:
        return np.zeros(0, dtype=bool), np.zeros(0, dtype=int), 0
    valid = decisions.valid["text"][0].cpu().numpy()
    ids = inputs["input_ids"][0]
    ids_KL = ids if ids.dim() == 2 else ids[None]
    return valid, ids_KL[0].cpu().numpy()[valid][1:], len(ids_KL)


def _text_of(dataset: Any, sample: Any, record: Record) -> str:
    """The text of a sample; of a block of texts, which retrieval has, the first."""
    gallery = getattr(dataset, "gallery", None)
    return str(record["question"] if gallery is None else gallery.texts[sample.texts[0]])


def _tokens(bundle: Bundle, text: str) -> int:
    """How many tokens a text has as a whole, with the special ones."""
    clean = getattr(bundle.task, "clean", str)
    return len(bundle.processor.tokenizer(clean(text), truncation=False, verbose=False)["input_ids"])


def model_view(pixels_3HW: Tensor, preprocess: Preprocess) -> Pixels:
    """The picture that a preprocessed image stands for, (H, W, 3)."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))
    return (pixels_3HW * std + mean).mul(255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def _word(tokenizer: Any, token: int) -> str:
    if token in tokenizer.all_special_ids:
        return "[end]" if token in (tokenizer.sep_token_id, tokenizer.eos_token_id) else "[unknown]"
    return tokenizer.decode([token]).strip() or "·"
