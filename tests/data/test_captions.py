"""Readers of captions: Karpathy's files, BLIP's files, NoCaps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from smarttrim_cli.data import blip_captions, karpathy, nocaps
from smarttrim_cli.data.samples import CaptionedImage
from smarttrim_cli.errors import UserError


def sentences(*raw: str) -> list[dict[str, Any]]:
    return [{"tokens": r.lower().split(), "raw": r, "imgid": 0, "sentid": n} for n, r in enumerate(raw)]


def coco_image(cocoid: int, split: str, filepath: str) -> dict[str, Any]:
    return {
        "filepath": filepath,
        "sentids": [1, 2],
        "filename": f"COCO_{filepath}_{cocoid:012d}.jpg",
        "imgid": cocoid - 7,
        "split": split,
        "sentences": sentences(f"A cat {cocoid}. ", "Two dogs."),
        "cocoid": cocoid,
    }


def flickr_image(imgid: int, split: str) -> dict[str, Any]:
    return {
        "sentids": [0],
        "imgid": imgid,
        "sentences": sentences("Two young guys."),
        "split": split,
        "filename": f"{imgid + 1000092795}.jpg",
    }


@pytest.fixture
def karpathy_dir(tmp_path: Path) -> Path:
    coco = [
        coco_image(391895, "test", "val2014"),
        coco_image(57870, "train", "train2014"),
        coco_image(522418, "restval", "val2014"),
        coco_image(184613, "val", "val2014"),
    ]
    (tmp_path / "karpathy").mkdir()
    (tmp_path / "karpathy" / "dataset_coco.json").write_text(json.dumps({"images": coco, "dataset": "coco"}))
    flickr = [flickr_image(0, "train"), flickr_image(1, "test")]
    (tmp_path / "dataset_flickr30k.json").write_text(json.dumps({"images": flickr, "dataset": "flickr30k"}))
    for folder in ("train2014", "val2014", "flickr30k-images"):
        (tmp_path / folder).mkdir()
    return tmp_path


def coco(folder: Path, **further: Any) -> karpathy.Options:
    return karpathy.Options(data_dir=str(folder), dataset="coco", **further)


def test_coco_with_restval_in_train(karpathy_dir: Path) -> None:
    first, second = karpathy.read(coco(karpathy_dir), "retrieval", "train", labelled=True)
    assert first == CaptionedImage(
        id=57870,
        images=(karpathy_dir / "train2014" / "COCO_train2014_000000057870.jpg",),
        captions=("A cat 57870.", "Two dogs."),
    )
    assert second.images == (karpathy_dir / "val2014" / "COCO_val2014_000000522418.jpg",)
    assert karpathy.splits(coco(karpathy_dir)) == ["test", "train", "val"]


def test_coco_without_restval(karpathy_dir: Path) -> None:
    options = coco(karpathy_dir, restval_is_train=False)
    assert karpathy.splits(options) == ["restval", "test", "train", "val"]
    assert [s.id for s in karpathy.read(options, "captioning", "train", labelled=True)] == [57870]
    joined = karpathy.read(options, "captioning", "train + restval", labelled=True)
    assert [s.id for s in joined] == [57870, 522418]


def test_flickr30k(karpathy_dir: Path) -> None:
    options = karpathy.Options(data_dir=str(karpathy_dir), dataset="flickr30k")
    (sample,) = karpathy.read(options, "retrieval", "test", labelled=True)
    assert sample.id == 1 and sample.captions == ("Two young guys.",) and sample.text == ""
    assert sample.images == (karpathy_dir / "flickr30k-images" / "1000092796.jpg",)
    elsewhere = karpathy.Options(
        data_dir=str(karpathy_dir), dataset="flickr30k", images_dir=str(karpathy_dir / "val2014")
    )
    (sample,) = karpathy.read(elsewhere, "retrieval", "test", labelled=True)
    assert sample.images == (karpathy_dir / "val2014" / "1000092796.jpg",)


def test_unknown_data_set_and_split(karpathy_dir: Path) -> None:
    with pytest.raises(ValidationError, match="'coco', 'flickr30k' or 'flickr8k'"):
        karpathy.Options(data_dir="x", dataset="mscoco")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"dataset_coco\.json: no images for split dev\n.*test, train, val"):
        karpathy.read(coco(karpathy_dir), "retrieval", "dev", labelled=True)
    options = karpathy.Options(data_dir=str(karpathy_dir), dataset="flickr8k")
    with pytest.raises(UserError, match=r"dataset_flickr8k\.json: no such file"):
        karpathy.splits(options)


def test_missing_image_folder(karpathy_dir: Path) -> None:
    (karpathy_dir / "train2014").rmdir()
    with pytest.raises(UserError, match="train2014: no such folder of images"):
        karpathy.read(coco(karpathy_dir), "retrieval", "train", labelled=True)
    assert len(karpathy.read(coco(karpathy_dir), "retrieval", "val", labelled=True)) == 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda image: image.pop("filename"), "image 1: the key filename is missing"),
        (lambda image: image.pop("split"), "image 1: the key split is missing"),
        (lambda image: image.pop("sentences"), "image 1: no list of sentences"),
        (lambda image: image.update(sentences=[{"tokens": []}]), "image 1: no list of sentences"),
        (lambda image: image.update(cocoid="57870"), 'image 1: cocoid is "57870", not a whole number'),
    ],
)
def test_damaged_images_are_named(
    karpathy_dir: Path, change: Callable[[dict[str, Any]], Any], problem: str
) -> None:
    path = karpathy_dir / "karpathy" / "dataset_coco.json"
    content = json.loads(path.read_text())
    change(content["images"][1])
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"dataset_coco\.json, {problem}"):
        karpathy.read(coco(karpathy_dir), "retrieval", "train", labelled=True)


@pytest.fixture
def blip_dir(tmp_path: Path) -> Path:
    train = [
        {"caption": "A woman.", "image": "val2014/COCO_val2014_000000522418.jpg", "image_id": "coco_522418"},
        {"caption": "A zebra.", "image": "train2014/COCO_train2014_000000000009.jpg", "image_id": "coco_9"},
        {"caption": "A cake.", "image": "val2014/COCO_val2014_000000522418.jpg", "image_id": "coco_522418"},
    ]
    test = [{"image": "val2014/COCO_val2014_000000391895.jpg", "caption": ["A man.", "A bike."]}]
    (tmp_path / "coco_karpathy_train.json").write_text(json.dumps(train))
    (tmp_path / "coco_karpathy_test.json").write_text(json.dumps(test))
    (tmp_path / "coco_karpathy_val_gt.json").write_text("{}")
    for folder in ("train2014", "val2014"):
        (tmp_path / folder).mkdir()
    return tmp_path


def blip(folder: Path, **further: Any) -> blip_captions.Options:
    return blip_captions.Options(data_dir=str(folder), dataset="coco_karpathy", **further)


def test_captions_of_blip_are_gathered_by_image(blip_dir: Path) -> None:
    first, second = blip_captions.read(blip(blip_dir), "captioning", "train", labelled=True)
    image = blip_dir / "val2014" / "COCO_val2014_000000522418.jpg"
    assert first == CaptionedImage(id=522418, images=(image,), captions=("A woman.", "A cake."))
    assert (second.id, second.captions) == (9, ("A zebra.",))
    (sample,) = blip_captions.read(blip(blip_dir), "captioning", "test", labelled=True)
    assert (sample.id, sample.captions) == (391895, ("A man.", "A bike."))
    assert blip_captions.splits(blip(blip_dir)) == ["test", "train"]


def test_blank_captions_of_blip_are_none(blip_dir: Path) -> None:
    path = blip_dir / "coco_karpathy_test.json"
    entry = {"image": "val2014/COCO_val2014_000000391895.jpg", "caption": ["A man.", "  "]}
    path.write_text(json.dumps([entry]))
    (sample,) = blip_captions.read(blip(blip_dir), "captioning", "test", labelled=True)
    assert sample.captions == ("A man.",)
    path.write_text(json.dumps([{**entry, "caption": ""}]))
    with pytest.raises(UserError, match=r"test\.json: no caption for image val2014/.*, or blank ones alone"):
        blip_captions.read(blip(blip_dir), "captioning", "test", labelled=True)


def test_ids_of_blip() -> None:
    assert blip_captions.image_id("flickr30k-images/1007129816.jpg") == 1007129816
    assert blip_captions.image_id("own/a cat.png") == "own/a cat.png"


def test_errors_of_blip(blip_dir: Path) -> None:
    with pytest.raises(UserError, match="no images for split val\n.*there: test, train"):
        blip_captions.read(blip(blip_dir), "captioning", "val", labelled=True)
    (blip_dir / "train2014").rmdir()
    with pytest.raises(UserError, match="train2014: no such folder of images"):
        blip_captions.read(blip(blip_dir), "captioning", "train", labelled=True)
    for entry, problem in [
        ({"image": "val2014/1.jpg"}, "entry 0: the key caption is missing"),
        ({"caption": "x"}, "entry 0: the key image is missing"),
        ({"image": "val2014/1.jpg", "caption": ["a", 1]}, "entry 0: caption is .* not a list of texts"),
        ({"image": "val2014/1.jpg", "caption": []}, "entry 0: caption is .* not a list of texts"),
    ]:
        (blip_dir / "coco_karpathy_test.json").write_text(json.dumps([entry]))
        with pytest.raises(UserError, match=rf"coco_karpathy_test\.json, {problem}"):
            blip_captions.read(blip(blip_dir), "captioning", "test", labelled=True)
    (blip_dir / "coco_karpathy_test.json").write_text("{}")
    with pytest.raises(UserError, match=r"coco_karpathy_test\.json: .* no list of images"):
        blip_captions.read(blip(blip_dir), "captioning", "test", labelled=True)


def nocaps_image(number: int, **further: Any) -> dict[str, Any]:
    return {
        "license": 0,
        "open_images_id": f"0013ea208702090{number}",
        "height": 1024,
        "width": 732,
        "coco_url": "https://example.com/0013ea2087020901.jpg",
        "file_name": f"0013ea208702090{number}.jpg",
        "date_captured": "2018-11-06 11:04:33",
        "id": number,
        **further,
    }


@pytest.fixture
def nocaps_dir(tmp_path: Path) -> Path:
    images = [nocaps_image(0, domain="in-domain"), nocaps_image(1, domain="near-domain")]
    said = [{"image_id": n % 2, "id": n, "caption": f"Caption {n}."} for n in range(4)]
    info = {"licenses": [], "info": {"url": "http://nocaps.org"}, "images": images}
    (tmp_path / "nocaps_val_image_info.json").write_text(json.dumps(info))
    (tmp_path / "nocaps_val_4500_captions.json").write_text(json.dumps({**info, "annotations": said}))
    (tmp_path / "nocaps_test_image_info.json").write_text(json.dumps({**info, "images": [nocaps_image(5)]}))
    (tmp_path / "val").mkdir()
    (tmp_path / "images" / "test").mkdir(parents=True)
    return tmp_path


def test_nocaps(nocaps_dir: Path) -> None:
    options = nocaps.Options(data_dir=str(nocaps_dir))
    first, second = nocaps.read(options, "captioning", "val", labelled=True)
    assert first == CaptionedImage(
        id=0,
        images=(nocaps_dir / "val" / "0013ea2087020900.jpg",),
        captions=("Caption 0.", "Caption 2."),
        type="in-domain",
    )
    assert second.type == "near-domain"
    (sample,) = nocaps.read(options, "captioning", "test", labelled=False)
    assert (sample.captions, sample.type) == ((), None)
    assert sample.images == (nocaps_dir / "images" / "test" / "0013ea2087020905.jpg",)
    assert set(nocaps.splits(options)) == {"val", "test"} and nocaps.TASKS == ("captioning",)


def test_errors_of_nocaps(nocaps_dir: Path) -> None:
    options = nocaps.Options(data_dir=str(nocaps_dir))
    with pytest.raises(UserError, match=r"nocaps_test_image_info\.json: split test has images but no capt"):
        nocaps.read(options, "captioning", "test", labelled=True)
    with pytest.raises(UserError, match="no images for split train\n.*there: .*val"):
        nocaps.read(options, "captioning", "train", labelled=True)
    path = nocaps_dir / "nocaps_val_4500_captions.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["caption"] = " "
    content["annotations"].pop(2)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"4500_captions\.json: no caption for image 0"):
        nocaps.read(options, "captioning", "val", labelled=True)
    content["annotations"][0].pop("caption")
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"4500_captions\.json, annotation 0: the key caption is missing"):
        nocaps.read(options, "captioning", "val", labelled=True)
    path.unlink()
    (nocaps_dir / "nocaps_val_image_info.json").rename(path)
    (nocaps_dir / "val").rmdir()
    (nocaps_dir / "images" / "test").rmdir()
    (nocaps_dir / "images").rmdir()
    with pytest.raises(UserError, match="val: no such folder of images"):
        nocaps.read(options, "captioning", "val", labelled=False)


def test_half_characters_in_sentences(karpathy_dir: Path) -> None:
    entry = {**flickr_image(0, "train"), "sentences": sentences("fine", "a\ud800")}
    (karpathy_dir / "dataset_flickr30k.json").write_text(json.dumps({"images": [entry]}))
    options = karpathy.Options(data_dir=str(karpathy_dir), dataset="flickr30k")
    with pytest.raises(UserError, match="image 0: raw has half of a character at 1"):
        karpathy.read(options, "retrieval", "train", labelled=True)
