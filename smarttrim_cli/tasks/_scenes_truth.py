"""What the generator of the scenes knows, laid over patches and words; and losses on it, for any backbone.

Legend: I images, B questions, L words, N patches, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smarttrim_cli.data.processor import Processor
from smarttrim_cli.data.scenes.options import GROUNDS, PALETTE, SHAPES, SIZES
from smarttrim_cli.data.scenes.truth import Box
from smarttrim_cli.data.scenes.world import SceneObject

COLORS = tuple(PALETTE)
_WORDS = {
    **{word: (0, index + 1) for index, word in enumerate(COLORS)},
    **{form: (1, index + 1) for index, word in enumerate(SHAPES) for form in (word, f"{word}s", f"{word}es")},
    **{word: (2, index + 1) for index, word in enumerate(SIZES)},
    **{word: (5, index + 1) for index, word in enumerate(GROUNDS)},
}
"""Attribute words: kind (column of ``patch_attributes``) and class from 1; 0 means no object."""
_ANCHOR_SIDE = {"left": 1, "right": 0, "above": 3, "below": 2}
"""Where the anchor lies, seen from the object asked for: index of its side in left, right, above, below."""
_SECOND_ROLES = frozenset({"anchor", "second"})
SMALLEST_OVERLAP = 4
"""Pixels of a box that make a patch part of what it shows."""


def overlaps(box: Box, grid: int, patch: int) -> list[tuple[int, int]]:
    """Patches (index in row-major order) that a box overlaps, with the number of pixels."""
    x, y, width, height = box
    found = []
    for row in range(y // patch, min((y + height - 1) // patch + 1, grid)):
        for column in range(x // patch, min((x + width - 1) // patch + 1, grid)):
            wide = min(x + width, (column + 1) * patch) - max(x, column * patch)
            high = min(y + height, (row + 1) * patch) - max(y, row * patch)
            found.append((row * grid + column, wide * high))
    return found


def patch_attributes(objects: Sequence[SceneObject], grid: int, patch: int) -> Tensor:
    """What is said of the object that covers most of a patch, (N, 6), classes from 1; 0: nothing is.

    Color, shape, size, row, column, and the ground where questions name it.
    """
    attributes = torch.zeros(grid * grid, 6, dtype=torch.long)
    covered = [0] * (grid * grid)
    for item in objects:
        size = SIZES.index(item.size) + 1 if item.size in SIZES else 0
        values = (
            COLORS.index(item.color) + 1,
            SHAPES.index(item.shape) + 1,
            size,
            item.row + 1,
            item.col + 1,
            0 if item.ground is None else GROUNDS.index(item.ground) + 1,
        )
        for index, pixels in overlaps(item.box, grid, patch):
            if pixels > covered[index]:
                covered[index] = pixels
                attributes[index] = torch.tensor(values)
    return attributes


def role_patches(boxes: Sequence[tuple[str, Box]], grid: int, patch: int) -> Tensor:
    """Patches that a question is about, (N, 2): what is asked for, and what it is related to."""
    marks = torch.zeros(grid * grid, 2)
    for role, box in boxes:
        for index, pixels in overlaps(box, grid, patch):
            if pixels >= SMALLEST_OVERLAP:
                marks[index, int(role in _SECOND_ROLES)] = 1.0
    return marks


def places(boxes: Sequence[tuple[str, Box]], objects: Sequence[SceneObject]) -> list[int]:
    """Row and column of the object asked for and of the related one; -1 where there is not exactly one."""
    by_box = {item.box: item for item in objects}
    found = []
    for second in (False, True):
        boxes_of = [box for role, box in boxes if (role in _SECOND_ROLES) == second]
        item = by_box.get(boxes_of[0]) if len(boxes_of) == 1 else None
        found += [-1, -1] if item is None else [item.row, item.col]
    return found


def anchor_side(question: str) -> int:
    """Side of the object asked for on which the anchor lies; -1 in questions not about a neighbour."""
    words = question.split()
    return _ANCHOR_SIDE[words[words.index("just") + 1]] if "just" in words else -1


def neighbours(patches_IN6: Tensor, grid: int) -> Tensor:
    """Attributes of every patch's neighbours, (4, I, N, 6): left, right, above, below; 0 outside."""
    padded = F.pad(patches_IN6.unflatten(1, (grid, grid)), (0, 0, 1, 1, 1, 1))
    sides = (padded[:, 1:-1, :-2], padded[:, 1:-1, 2:], padded[:, :-2, 1:-1], padded[:, 2:, 1:-1])
    return torch.stack([side.flatten(1, 2) for side in sides])


def word_attributes(processor: Processor) -> Tensor:
    """Token id to (kind, class); class 0 for words that name no attribute."""
    table = torch.zeros(len(processor.tokenizer), 2, dtype=torch.long)
    for word, attribute in _WORDS.items():
        index = processor.tokenizer.get_vocab().get(word)
        if index is not None:
            table[index] = torch.tensor(attribute)
    return table


class PatchLosses(nn.Module):
    """Attributes of every patch, and of the neighbours of patches with an object, from its features.

    Args:
        width: Of the features.
        grid: Patches per side.
        cells: Cells per side of a scene.
        neighbour_weight: Of the neighbours within the loss.
        grounds: Whether questions name what is behind an object.
    """

    def __init__(
        self, width: int, grid: int, cells: int, neighbour_weight: float, grounds: bool = False
    ) -> None:
        super().__init__()
        self.grid, self.neighbour_weight = grid, neighbour_weight
        sizes = [len(COLORS) + 1, len(SHAPES) + 1, len(SIZES) + 1, cells + 1, cells + 1]
        self.sizes = (*sizes, len(GROUNDS) + 1) if grounds else tuple(sizes)
        self.attributes = nn.Linear(width, sum(self.sizes))
        self.neighbours = nn.Linear(width, 4 * sum(self.sizes[:2]))

    def forward(self, image_IND: Tensor, patches_IN6: Tensor) -> Tensor:
        """Mean cross-entropy, summed over attributes."""
        logits = self.attributes(image_IND).flatten(0, 1).split(self.sizes, -1)
        own = sum(F.cross_entropy(part, patches_IN6[..., k].flatten()) for k, part in enumerate(logits))
        filled = (patches_IN6[..., 0] > 0).flatten()
        kinds = self.sizes[:2]
        around = self.neighbours(image_IND).flatten(0, 1)[filled].split(kinds * 4, -1)
        shifted = neighbours(patches_IN6, self.grid)
        beside = sum(
            F.cross_entropy(around[2 * side + kind], shifted[side, ..., kind].flatten()[filled])
            for side in range(4)
            for kind in range(2)
        )
        return own + self.neighbour_weight * beside  # type: ignore[return-value]


def patches_meant(targets: Mapping[str, Tensor], grid: int) -> Tensor:
    """Attributes that a question's words are matched with, (B, N, 6): of the patch or of a neighbour."""
    patches, side_B = targets["patches"], targets["side"]
    both = torch.cat((patches[None], neighbours(patches, grid)))
    return both[side_B + 1, targets["image_index"]]


def matching_loss(attributes_BL2: Tensor, logits_BLN: Tensor, patches_BN6: Tensor) -> Tensor:
    """Does a patch have the attribute that a word names? Over attribute words only; 0 if none are."""
    kind_BL, value_BL = attributes_BL2.unbind(-1)
    chosen = value_BL > 0
    found = patches_BN6[:, None].expand(-1, kind_BL.shape[1], -1, -1)
    found = found.gather(3, kind_BL[:, :, None, None].expand(*found.shape[:3], 1)).squeeze(-1)
    matches_BLN = (found == value_BL[..., None]).float()
    positive = torch.tensor(3.0, device=logits_BLN.device)
    losses = F.binary_cross_entropy_with_logits(
        logits_BLN[chosen], matches_BLN[chosen], pos_weight=positive, reduction="none"
    )
    return losses.sum() / max(losses.numel(), 1)
