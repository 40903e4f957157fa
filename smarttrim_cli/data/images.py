"""Decoding image files to RGB, and turning images into the tensor a backbone expects.

The two resize modes are those of the official METER (``clip_transform``: shorter side and centre crop) and
BLIP (resize to a square); rounding is as in torchvision, on which both rest, so that outputs agree to the
last bit.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from smarttrim_cli.data.samples import ImageSource, NoImage
from smarttrim_cli.errors import UserError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_Mode = Literal["resize", "shorter_side_center_crop"]
_HINT = "Restore the file, or remove the sample."
_INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


MOST_ELONGATED = 100
"""Long over short side beyond which an image cannot be meant; resized by its short side it would be huge."""


class BadSample(UserError):
    """A sample that cannot be used, such as one with a missing or broken image."""


def load_rgb(source: ImageSource, *, sample_id: object) -> Image.Image:
    """Read an image as upright 8-bit RGB, whatever its mode.

    Transparency is laid on white, 16-bit grey is scaled to 8 bits, an EXIF orientation is applied.

    Args:
        source: An image file, or an image inside a table.
        sample_id: Names the sample in errors.

    Raises:
        BadSample: The image is missing, empty, truncated, too large to be meant, or no image.
    """
    try:
        with _opened(source) as image:
            image.load()
            return upright_rgb(image)
    except BadSample as error:
        raise BadSample(error.message, where=f"sample {sample_id}, {source}", hint=_HINT) from error
    except Exception as error:  # on broken bytes Pillow raises anything, from EOFError to struct.error
        where = f"sample {sample_id}, {source}"
        raise BadSample(_problem(source, error), where=where, hint=_HINT) from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """An image in 8-bit RGB, turned as its EXIF data say.

    Raises:
        BadSample: It is too long and thin.
    """
    _refuse_thin(*image.size)
    _load(image)
    return to_rgb(ImageOps.exif_transpose(image))


def _load(image: Image.Image) -> None:
    """Read the pixels, if that has not been done; without its name, by which Pillow would map the file."""
    source: Any = image
    name = getattr(source, "filename", None)
    if name is None:  # not of a file
        return
    source.filename = ""
    try:
        source.load()
    finally:
        source.filename = name


def _refuse_thin(width: int, height: int) -> None:
    if max(width, height) > MOST_ELONGATED * min(width, height):
        raise BadSample(f"the image is too long and thin ({width} x {height} pixels)")


@contextmanager
def _opened(source: ImageSource) -> Iterator[Image.Image]:
    """By a file that is open: of paths Pillow maps some TIFFs into memory, and then turns them wrongly."""
    if not isinstance(source, str | Path):
        with source.open() as image:
            yield image
        return
    _refuse_pipes(source)
    with open(source, "rb") as file, Image.open(file) as image:
        yield image


def _refuse_pipes(path: str | Path) -> None:
    """To open a pipe would be to wait for whoever writes into it."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise BadSample("not a file, but a pipe or a device")


def _problem(source: ImageSource, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the image file is missing"
    if isinstance(error, UnidentifiedImageError):
        empty = isinstance(source, Path) and source.stat().st_size == 0
        return "the image file is empty" if empty else "the file is not an image that can be read"
    if isinstance(error, Image.DecompressionBombError):
        return f"the image is too large ({error})"
    if isinstance(error, NoImage):
        return "there is no image in this cell"
    if isinstance(error, OSError) and error.errno is not None:
        return f"the image file cannot be read ({error.strerror})"
    return f"the image is damaged ({error})"


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB.

    White is 65535 in 16 bits; in 32 bits also 255, and in floating point 1, where no pixel is beyond that.
    """
    if image.mode.startswith("I;16") or image.mode == "I":
        grey_HW = np.asarray(image).astype(np.int64).clip(0, 65535)
        eight_bit = image.mode == "I" and grey_HW.max(initial=0) <= 255
        return Image.fromarray((grey_HW if eight_bit else grey_HW // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        grey_HW = np.nan_to_num(np.asarray(image))
        white = 1.0 if grey_HW.max(initial=0.0) <= 1 else 255.0
        return Image.fromarray((grey_HW * (255 / white)).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        behind = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(behind, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


@dataclass(frozen=True)
class Preprocess:
    """How an RGB image becomes a model input; a call gives a float tensor (3, size, size).

    Attributes:
        size: Height and width of the output in pixels.
        mode: ``resize`` to the square, or ``shorter_side_center_crop`` (keeps the aspect ratio).
        interpolation: Name of the resampling filter.
        mean: Per channel, subtracted from values scaled to 0..1.
        std: Per channel, by which the result is divided.
    """

    size: int
    mode: _Mode = "resize"
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bicubic"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        """Refuse what no image can be made with; files that say so may have been edited."""
        if type(self.size) is not int or self.size < 1:
            raise ValueError(f"size is {self.size!r}")
        if self.mode not in get_args(_Mode) or self.interpolation not in _INTERPOLATION:
            raise ValueError(f"mode is {self.mode!r}, interpolation {self.interpolation!r}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(type(value) in (int, float) for value in values):
                raise ValueError(f"{name} is {values!r}, not three numbers")
            if not all(math.isfinite(value) for value in values):
                raise ValueError(f"{name} is {values!r}, which is not finite")
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std!r}, by which the values are divided: it has to be positive")

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Resize, crop, scale and normalise."""
        pixels_HW3 = np.array(self._resize(image), dtype=np.uint8)
        pixels_3HW = torch.from_numpy(pixels_HW3).permute(2, 0, 1).to(torch.float32).div(255).contiguous()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return pixels_3HW.sub_(mean).div_(std)

    def _resize(self, image: Image.Image) -> Image.Image:
        method = _INTERPOLATION[self.interpolation]
        if self.mode == "resize":
            return (
                image
                if image.size == (self.size, self.size)
                else image.resize((self.size, self.size), method)
            )
        width, height = image.size
        short = min(width, height)
        width, height = int(self.size * width / short), int(self.size * height / short)
        if (width, height) != image.size:
            image = image.resize((width, height), method)
        left, top = round((width - self.size) / 2.0), round((height - self.size) / 2.0)
        return image.crop((left, top, left + self.size, top + self.size))
