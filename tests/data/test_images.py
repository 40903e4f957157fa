from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from torchvision import transforms

from smarttrim_cli.cli.streams import ignore_warnings_of_size
from smarttrim_cli.data.images import (
    CLIP_MEAN,
    CLIP_STD,
    BadSample,
    Preprocess,
    load_rgb,
    to_rgb,
    upright_rgb,
)
from smarttrim_cli.data.samples import EmbeddedImage

GOLDEN = Path(__file__).parents[1] / "fixtures" / "preprocess.npz"
PILLOW = int(PIL.__version__.partition(".")[0])


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def official(pixels: np.ndarray, mode: str) -> np.ndarray:
    """The official transforms of METER and BLIP, with the Pillow that is installed."""
    bicubic = transforms.InterpolationMode.BICUBIC
    shorter = [transforms.Resize(48, bicubic), transforms.CenterCrop(48)]
    sized = shorter if mode == "shorter_side_center_crop" else [transforms.Resize((48, 48), bicubic)]
    last = [transforms.ToTensor(), transforms.Normalize(CLIP_MEAN, CLIP_STD)]
    found: torch.Tensor = transforms.Compose([*sized, *last])(Image.fromarray(pixels))
    return found.numpy()


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    ("key", "mode"), [("prep_meter_clip48_out", "shorter_side_center_crop"), ("prep_blip48_out", "resize")]
)
def test_equals_the_official_preprocessing(
    golden: dict[str, np.ndarray], index: int, key: str, mode: str
) -> None:
    out = Preprocess(48, mode)(Image.fromarray(golden[f"prep_in{index}"]))  # type: ignore[arg-type]
    np.testing.assert_array_equal(out.numpy(), official(golden[f"prep_in{index}"], mode))
    if PILLOW >= 13:  # older ones resample otherwise than the version that the reference was made with
        np.testing.assert_array_equal(out.numpy(), golden[f"{key}{index}"])


@pytest.mark.parametrize("mode", ["resize", "shorter_side_center_crop"])
def test_an_image_of_the_right_size_is_only_normalised(mode: str) -> None:
    image = Image.new("RGB", (16, 16), (255, 0, 51))
    out = Preprocess(16, mode)(image)  # type: ignore[arg-type]
    assert out.dtype == torch.float32
    expected = [(value - m) / s for value, m, s in zip((1.0, 0.0, 0.2), CLIP_MEAN, CLIP_STD, strict=True)]
    torch.testing.assert_close(out, torch.tensor(expected).view(3, 1, 1).expand(3, 16, 16))


@pytest.mark.parametrize("size", [(10, 300), (300, 10), (1, 1), (31, 33)])
def test_any_shape_gives_a_square(size: tuple[int, int]) -> None:
    for mode in ("resize", "shorter_side_center_crop"):
        assert Preprocess(32, mode)(Image.new("RGB", size)).shape == (3, 32, 32)  # type: ignore[arg-type]


def pixel(path: Path) -> tuple[int, ...]:
    image = load_rgb(path, sample_id=1)
    assert image.mode == "RGB"
    value = image.getpixel((0, 0))
    assert isinstance(value, tuple)
    return value


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("LA", (40, 255), (40, 40, 40)),
        ("LA", (40, 0), (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("I;16", 257 * 130, (130, 130, 130)),
    ],
)
def test_modes_in_png(tmp_path: Path, mode: str, color: object, expected: tuple[int, ...]) -> None:
    Image.new(mode, (4, 4), color).save(tmp_path / "image.png")  # type: ignore[arg-type]
    assert pixel(tmp_path / "image.png") == expected


def test_half_transparent_is_mixed_with_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 128)).save(tmp_path / "image.png")
    assert pixel(tmp_path / "image.png") == (127, 127, 127)


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=1)
    assert pixel(tmp_path / "opaque.png") == (200, 100, 50)
    assert pixel(tmp_path / "clear.png") == (255, 255, 255)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "image.jpg", quality=95)
    red, green, blue = pixel(tmp_path / "image.jpg")
    assert red > 245
    assert max(green, blue) < 10


def test_float_and_int_tiff(tmp_path: Path) -> None:
    Image.new("F", (4, 4), 99.0).save(tmp_path / "float.tif")
    Image.new("I", (4, 4), 257 * 12).save(tmp_path / "int.tif")
    assert pixel(tmp_path / "float.tif") == (99, 99, 99)
    assert pixel(tmp_path / "int.tif") == (12, 12, 12)
    Image.new("F", (4, 4), 0.2).save(tmp_path / "unit.tif")
    Image.new("I", (4, 4), 51).save(tmp_path / "bytes.tif")
    assert pixel(tmp_path / "unit.tif") == pixel(tmp_path / "bytes.tif") == (51, 51, 51)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert load_rgb(tmp_path / "turned.jpg", sample_id=1).size == (10, 20)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "RGB"])
def test_orientation_of_uncompressed_tiffs(tmp_path: Path, mode: str) -> None:
    """Pillow maps such files into memory when it is given their path, and then turns them wrongly."""
    rng = np.random.default_rng(0)
    grey_HW = rng.integers(0, 255, (20, 30), dtype=np.uint8)
    image = Image.fromarray(grey_HW.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey_HW)
    image = image if mode == "I;16" else image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.tif", exif=exif)
    upright = load_rgb(tmp_path / "turned.tif", sample_id=1)
    assert upright.size == (20, 30)
    assert np.array_equal(np.asarray(upright)[..., 0], np.asarray(to_rgb(image))[::-1, :, 0].T)
    with Image.open(tmp_path / "turned.tif") as given:  # as to ``predict``; its pixels are read late
        assert np.array_equal(np.asarray(upright_rgb(given)), np.asarray(upright))
        assert given.filename == str(tmp_path / "turned.tif")


def test_image_that_is_too_thin(tmp_path: Path) -> None:
    """METER's preprocessing makes the short side as long as the model's: the long one may fill memory."""
    Image.new("L", (1, 2000)).save(tmp_path / "thin.png")
    with pytest.raises(BadSample, match=r"sample 3, .*thin.png: the image is too long and thin \(1 x 2000"):
        load_rgb(tmp_path / "thin.png", sample_id=3)


def test_bad_files_name_the_sample_and_the_path(tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(good)
    for name, data, problem in [
        ("cut.png", good.read_bytes()[:2000], "damaged"),
        ("text.png", b"hello", "not an image"),
        ("empty.png", b"", "the image file is empty"),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadSample, match=rf"sample 4711, .*{name}: .*{problem}"):
            load_rgb(tmp_path / name, sample_id=4711)
    with pytest.raises(BadSample, match=r"sample 4711, .*none\.png: the image file is missing"):
        load_rgb(tmp_path / "none.png", sample_id=4711)
    with pytest.raises(BadSample, match=r"cannot be read \(Is a directory\)"):
        load_rgb(tmp_path, sample_id=1)
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with pytest.raises(BadSample, match=r"loop\.png: the image file cannot be read \(Too many levels"):
        load_rgb(tmp_path / "loop.png", sample_id=1)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(BadSample, match=rf"sample 2, {path}: not a file, but a pipe or a device"):
            load_rgb(path, sample_id=2)


def test_transparent_colour_of_an_rgb_file(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "clear.png", transparency=(1, 2, 3))
    Image.new("RGB", (4, 4), (1, 2, 4)).save(tmp_path / "opaque.png", transparency=(1, 2, 3))
    assert pixel(tmp_path / "clear.png") == (255, 255, 255)
    assert pixel(tmp_path / "opaque.png") == (1, 2, 4)


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "LAB", "PA", "RGBX", "I;16B"])
def test_rarer_modes_become_rgb(mode: str) -> None:
    assert to_rgb(Image.new(mode, (4, 4))).mode == "RGB"


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadSample, match=r"sample a-7, .*bomb\.png: the image is too large \(.*10000 pixels"):
        load_rgb(tmp_path / "bomb.png", sample_id="a-7")


def test_large_images_are_no_reason_to_warn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    Image.new("1", (100, 100)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9000)
    ignore_warnings_of_size()
    assert load_rgb(tmp_path / "large.png", sample_id=1).size == (100, 100)
    assert not recwarn.list


def test_reading_an_image_does_not_bring_warnings_back(tmp_path: Path) -> None:
    """What Python says once per place it would say again if filters were changed for every image."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(3):
            warnings.warn("of training", UserWarning, stacklevel=1)
            load_rgb(tmp_path / "a.png", sample_id=1)
    assert len(seen) == 1


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "webp", "bmp"])
def test_whatever_is_broken_in_a_file_is_a_bad_sample(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
    whole = bytearray(path.read_bytes())
    bad = 0
    for _ in range(40):
        broken = whole.copy()
        for place in generator.integers(0, min(len(whole), 200), 6):
            broken[place] = generator.integers(256)
        path.write_bytes(broken[: generator.integers(1, len(whole) + 1)])
        try:
            assert load_rgb(path, sample_id=1).mode == "RGB"
        except BadSample as error:
            bad += 1
            assert "\n" not in error.message
    assert bad > 10


class Cells:
    """A table of one cell."""

    def __init__(self, cell: object) -> None:
        self.cell = cell

    def __getitem__(self, row: int) -> dict[str, object]:
        return {"image": self.cell}


def embedded(cell: object, position: int | None = None) -> EmbeddedImage:
    return EmbeddedImage(Cells(cell), 3, "image", "folder", position)


def test_images_inside_a_table(tmp_path: Path) -> None:
    picture = Image.new("L", (4, 4), 77)
    picture.save(tmp_path / "image.png")
    data = (tmp_path / "image.png").read_bytes()
    stored = {"bytes": None, "path": str(tmp_path / "image.png")}
    for cell in (picture, data, {"bytes": data, "path": "x.png"}, stored, str(tmp_path / "image.png")):
        assert load_rgb(embedded(cell), sample_id=1).getpixel((0, 0)) == (77, 77, 77)
    assert load_rgb(embedded([b"", data], position=1), sample_id=1).size == (4, 4)


@pytest.mark.parametrize(
    ("cell", "position", "problem"),
    [
        (b"", None, "not an image that can be read"),
        ({"bytes": None, "path": "/nowhere/x.png"}, None, "the image file is missing"),
        ({"bytes": None, "path": None}, None, "there is no image in this cell"),
        (None, None, "there is no image in this cell"),
        ([b""], 1, "damaged"),
    ],
)
def test_bad_cells_name_sample_and_place(cell: object, position: int | None, problem: str) -> None:
    with pytest.raises(BadSample, match=rf"sample 8, folder, row 3, column image: .*{problem}"):
        load_rgb(embedded(cell, position), sample_id=8)


@pytest.mark.parametrize(
    "wrong",
    [{"std": (0.5, 0.0, 0.5)}, {"std": (0.5, -1.0, 0.5)}, {"std": (0.5, math.nan, 0.5)}]
    + [{"std": (True, True, True)}, {"mean": (math.inf, 0.0, 0.0)}, {"mean": (0.0, False, 0.0)}],
)
def test_normalisation_that_gives_no_numbers(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is "):
        Preprocess(size=4, **wrong)
