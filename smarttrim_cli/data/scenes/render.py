"""Draws a scene: background, objects in flat colours, then pixel noise over everything."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from smarttrim_cli.data.scenes.options import PALETTE
from smarttrim_cli.data.scenes.world import Scene


def render(scene: Scene) -> Image.Image:
    """The picture of a scene, RGB, ``image_size`` pixels square."""
    pixels_HW3 = np.repeat(_background(scene)[:, :, None], 3, axis=2)
    for item in scene.objects:
        x, y, side, _ = item.box
        pixels_HW3[y : y + side, x : x + side][shape_mask(item.shape, side)] = PALETTE[item.color]
    noise_rng = np.random.default_rng(scene.background.noise_seed)
    noise_HW3 = noise_rng.standard_normal(pixels_HW3.shape, dtype=np.float32) * np.float32(
        scene.background.noise
    )
    return Image.fromarray(np.clip(np.rint(pixels_HW3 + noise_HW3), 0, 255).astype(np.uint8))


@lru_cache(maxsize=256)
def shape_mask(shape: str, side: int) -> NDArray[np.bool_]:
    """Which pixels of a ``side`` x ``side`` box belong to the shape."""
    offset = np.abs(np.arange(side) - (side - 1) / 2)
    down, across = offset[:, None], offset[None, :]
    if shape == "square":
        return np.ones((side, side), dtype=bool)
    if shape == "circle":
        return down**2 + across**2 <= (side / 2) ** 2
    if shape == "diamond":
        return down + across <= side / 2
    if shape == "triangle":
        return across <= np.arange(1, side + 1)[:, None] / 2
    if shape == "cross":
        bar = side / 6
        return (down <= bar) | (across <= bar)
    raise KeyError(shape)


def _background(scene: Scene) -> NDArray[np.float32]:
    """Grey levels (H, W) of what is behind the objects."""
    look = scene.background
    steps = np.linspace(-0.5, 0.5, scene.image_size, dtype=np.float32)
    slope = np.cos(look.angle) * steps[None, :] + np.sin(look.angle) * steps[:, None]
    grey_HW = (look.dark + (look.light - look.dark) * (slope / 1.5 + 0.5)).astype(np.float32)
    margin = (scene.image_size - scene.grid * scene.cell_size) // 2
    for cell, texture in enumerate(look.tiles):
        row, col = divmod(cell, scene.grid)
        y, x = margin + row * scene.cell_size, margin + col * scene.cell_size
        grey_HW[y : y + scene.cell_size, x : x + scene.cell_size] = _texture(texture, scene.cell_size)
    return grey_HW


@lru_cache(maxsize=64)
def _texture(index: int, side: int) -> NDArray[np.float32]:
    """One of six grey textures: two flat, stripes both ways, checkers, dots."""
    down, across = np.indices((side, side))
    patterns = (
        np.zeros((side, side)),
        np.ones((side, side)),
        down // 2 % 2,
        across // 2 % 2,
        (down // 2 + across // 2) % 2,
        (down % 3 == 0) & (across % 3 == 0),
    )
    return (50 + 70 * patterns[index]).astype(np.float32)
