"""Retrieval as data: pairs to learn from, and the images and texts of a split to be found among each other.

A block is an image with some of the texts. An item of evaluation is a block: one of those that cover the
whole matrix, or, where candidates are chosen first, one per image.

Legend: I images, T texts, K texts of a block or of a training instance.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor
from torch.utils.data import Dataset

from smarttrim_cli.data.images import BadSample
from smarttrim_cli.data.processor import Processor
from smarttrim_cli.data.samples import CaptionedImage, ImageSource, SampleId
from smarttrim_cli.errors import UserError
from smarttrim_cli.tasks._data import Item, pixels_of, spread, stable_hash


@dataclass(frozen=True)
class Pair:
    """An image with one of its texts; ``place`` is the text's in the gallery."""

    id: str
    images: tuple[ImageSource, ...]
    text: str
    place: int


@dataclass(frozen=True)
class Block:
    """An image to be scored with some texts; both by their places in the gallery named ``gallery``."""

    id: str
    images: tuple[ImageSource, ...]
    gallery: str
    image: int
    texts: Sequence[int]
    text: str = ""


@dataclass(frozen=True)
class Gallery:
    """Images (I) with their texts (T), which lie in the order of the images."""

    name: str
    images: Sequence[CaptionedImage]

    @cached_property
    def texts(self) -> list[str]:
        """All texts, (T,)."""
        return [caption for image in self.images for caption in image.captions]

    @cached_property
    def image_of_text(self) -> list[int]:
        """Place of each text's image, (T,)."""
        return [place for place, image in enumerate(self.images) for _ in image.captions]

    @cached_property
    def ids(self) -> list[SampleId]:
        """Of the images, (I,)."""
        return [image.id for image in self.images]

    def places_of_texts(self) -> list[list[int]]:
        """Places of every image's own texts, (I,)."""
        places: list[list[int]] = [[] for _ in self.images]
        for text, image in enumerate(self.image_of_text):
            places[image].append(text)
        return places

    def part(self, places: Sequence[int]) -> Gallery:
        """Some of the images, in the order given, with their texts."""
        return Gallery(self.name, [self.images[place] for place in places])

    def pairs(self) -> list[Pair]:
        """Every text with its image, (T,)."""
        return [
            Pair(f"{self.ids[image]}#{place}", self.images[image].images, self.texts[place], place)
            for place, image in enumerate(self.image_of_text)
        ]

    def false_texts(self, pairs: Sequence[Pair], number: int, seed: int) -> list[list[int]]:
        """So many different texts of other images for every pair, at random.

        They are a function of the seed and of the batch as a whole: batches differ from epoch to epoch, so
        the texts do, and neither workers nor a resumed run make a difference.
        """
        drawn = random.Random(stable_hash(seed, *(pair.place for pair in pairs)))
        return [self._others(pair.place, number, drawn) for pair in pairs]

    def other_images(self, pairs: Sequence[Pair], seed: int) -> list[int]:
        """For half of a batch the row of another image in it, for the rest their own row; at random.

        A function of seed and batch, as for texts. A row stays its own where a batch has no other image.
        """
        images = [self.image_of_text[pair.place] for pair in pairs]
        drawn = random.Random(stable_hash(seed, "images", *(pair.place for pair in pairs)))
        rows = list(range(len(pairs)))
        for row in drawn.sample(rows, len(rows) - len(rows) // 2):
            others = [other for other, image in enumerate(images) if image != images[row]]
            rows[row] = drawn.choice(others) if others else row
        return rows

    def _others(self, place: int, number: int, drawn: random.Random) -> list[int]:
        found: dict[int, None] = {}
        while len(found) < number:
            other = drawn.randrange(len(self.texts))
            if self.image_of_text[other] != self.image_of_text[place]:
                found[other] = None
        return list(found)


def gallery(split: str, images: Sequence[CaptionedImage], limit: int | None = None) -> Gallery:
    """The gallery of a split, or of so many of its images, spread evenly: finding is easier there.

    Raises:
        UserError: An image has no text.
    """
    lacking = next((image for image in images if not image.captions), None)
    if lacking is not None:
        raise UserError(f"image {lacking.id} has no text", where=f"split {split}")
    if limit is None or limit >= len(images):
        return Gallery(split, images)
    return Gallery(f"{split}, {limit} images", spread(images, limit))


def images_in_blocks(images: Sequence[CaptionedImage], blocks: int | None, block_size: int) -> int:
    """As many images as have a complete matrix in at most so many blocks."""
    texts = sum(len(image.captions) for image in images)
    if blocks is None or len(images) * math.ceil(texts / block_size) <= blocks:
        return len(images)
    texts_per_image = max(len(image.captions) for image in images)
    number = 1
    while (number + 1) * math.ceil((number + 1) * texts_per_image / block_size) <= blocks:
        number += 1
    return number


class Blocks(Dataset[Item | None], ABC):
    """Blocks of a gallery, image by image; an item is None where a broken image is skipped."""

    def __init__(self, gallery: Gallery, processor: Processor, skip_bad: bool) -> None:
        self.gallery, self.processor, self.skip_bad = gallery, processor, skip_bad
        self._last: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self.gallery.images)

    @property
    def samples(self) -> list[Block]:
        """All blocks."""
        return [self.block(index) for index in range(len(self))]

    @abstractmethod
    def block(self, index: int) -> Block:
        """The block of an item."""

    def __getitem__(self, index: int) -> Item | None:
        """Decode the image of a block, unless it is that of the item before."""
        block = self.block(index)
        if self._last is None or self._last[0] != block.image:
            try:
                self._last = (block.image, pixels_of(self.gallery.images[block.image], self.processor))
            except BadSample:
                if self.skip_bad:
                    return None
                raise
        return block, self._last[1]


class WholeMatrix(Blocks):
    """All images with all texts, each pair once: blocks of one size, but for an image's last, the rest."""

    def __init__(self, gallery: Gallery, processor: Processor, skip_bad: bool, block_size: int) -> None:
        super().__init__(gallery, processor, skip_bad)
        count = len(gallery.texts)
        self.blocks = math.ceil(count / block_size)
        self.size = math.ceil(count / self.blocks)

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self.gallery.images) * self.blocks

    def width(self, index: int) -> int:
        """Number of texts of a block; a batch has blocks of one width."""
        return min(self.size, len(self.gallery.texts) - index % self.blocks * self.size)

    def block(self, index: int) -> Block:
        """The block of an item."""
        image, number = divmod(index, self.blocks)
        first = number * self.size
        sample = self.gallery.images[image]
        texts = range(first, first + self.width(index))
        return Block(f"{sample.id}/{first}", sample.images, self.gallery.name, image, texts)


class OnePerImage(Blocks):
    """Every image once, with as many texts as are scored at once, its own first.

    For two stages, whose candidates depend on the model: the first stage takes the image alone, and what
    looks at typical instances (calibration, profiles, pictures) the block.
    """

    def __init__(self, gallery: Gallery, processor: Processor, skip_bad: bool, block_size: int) -> None:
        super().__init__(gallery, processor, skip_bad)
        self.size = min(block_size, len(gallery.texts))
        self.own = gallery.places_of_texts()

    def block(self, index: int) -> Block:
        """The block of an image."""
        sample, first, count = self.gallery.images[index], self.own[index][0], len(self.gallery.texts)
        texts = [(first + step) % count for step in range(self.size)]
        return Block(str(sample.id), sample.images, self.gallery.name, index, texts)
