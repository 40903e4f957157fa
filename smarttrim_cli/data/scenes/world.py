"""A scene: objects on a grid of cells, and how one is drawn at random.

A ``Scene`` is the whole truth about an image. The picture (``render``) and everything said about it
(``questions``, ``statements``, ``hypotheses``, ``captions``) are functions of it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from smarttrim_cli.data.scenes.options import GROUNDS, Options

DIRECTIONS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
"""Words for a direction, with its step in rows and columns."""


@dataclass(frozen=True)
class SceneObject:
    """One coloured shape; ``box`` is (x, y, width, height) in pixels, ``row`` and ``col`` its cell.

    ``ground`` is the texture behind it, where questions name it.
    """

    shape: str
    color: str
    size: str
    row: int
    col: int
    box: tuple[int, int, int, int]
    ground: str | None = None

    @property
    def center(self) -> tuple[float, float]:
        """Middle of the box as (x, y), in pixels."""
        x, y, width, height = self.box
        return x + width / 2, y + height / 2


@dataclass(frozen=True)
class BackgroundLook:
    """What is behind the objects: a gradient from ``dark`` to ``light``, or a texture per cell."""

    dark: int
    light: int
    angle: float
    tiles: tuple[int, ...]
    noise: float
    noise_seed: int


@dataclass(frozen=True)
class Scene:
    """Objects, background and the frame they live in; ``values`` are all values an attribute can have."""

    objects: tuple[SceneObject, ...]
    background: BackgroundLook
    image_size: int
    grid: int
    cell_size: int
    values: dict[str, tuple[str, ...]]

    def neighbour(self, index: int, row_step: int, col_step: int) -> int | None:
        """Index of the object in the cell that many steps away from object ``index``, if there is one."""
        place = (self.objects[index].row + row_step, self.objects[index].col + col_step)
        return next((i for i, other in enumerate(self.objects) if (other.row, other.col) == place), None)

    def lies(self, words: str, index: int, other: int) -> int:
        """How many cells object ``index`` lies in a direction from another one; negative: the other way."""
        row_step, col_step = DIRECTIONS[words]
        one, two = self.objects[index], self.objects[other]
        return (one.row - two.row) * row_step + (one.col - two.col) * col_step


def sample_scene(rng: random.Random, options: Options) -> Scene:
    """Draw a scene: every attribute uniform and independent, cells without repetition."""
    number = rng.randint(options.min_objects, options.max_objects)
    cells = rng.sample(range(options.grid**2), number)
    objects = tuple(_sample_object(rng, options, *divmod(cell, options.grid)) for cell in sorted(cells))
    values = {"color": options.colors, "shape": options.shapes, "size": options.sizes}
    background = _sample_background(rng, options)
    return Scene(objects, background, options.image_size, options.grid, options.cell_size, values)


def with_grounds(scene: Scene, tiles: int) -> Scene:
    """The same scene with objects that know which of so many textures is behind them."""
    behind = [GROUNDS[scene.background.tiles[item.row * scene.grid + item.col]] for item in scene.objects]
    objects = tuple(replace(item, ground=name) for item, name in zip(scene.objects, behind, strict=True))
    return replace(scene, objects=objects, values={**scene.values, "ground": GROUNDS[:tiles]})


def _sample_object(rng: random.Random, options: Options, row: int, col: int) -> SceneObject:
    which = rng.randrange(len(options.object_sizes))
    pixels = options.object_sizes[which]
    slack = options.cell_size - pixels
    margin = (options.image_size - options.grid * options.cell_size) // 2

    def position(cell: int) -> int:
        shift = slack // 2 + rng.randint(-options.jitter, options.jitter)
        return margin + cell * options.cell_size + min(max(shift, 0), slack)

    box = (position(col), position(row), pixels, pixels)
    return SceneObject(
        rng.choice(options.shapes), rng.choice(options.colors), options.sizes[which], row, col, box
    )


def _sample_background(rng: random.Random, options: Options) -> BackgroundLook:
    look = options.background
    tiles = tuple(rng.randrange(look.tiles) for _ in range(options.grid**2)) if look.kind == "tiles" else ()
    return BackgroundLook(
        dark=rng.randint(30, 80),
        light=rng.randint(90, 140),
        angle=rng.uniform(0.0, 6.2831853),
        tiles=tiles,
        noise=look.noise,
        noise_seed=rng.getrandbits(32),
    )
