"""Scenes for every task: official files, read back by the official readers; and VQA as it always was."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from smarttrim_cli.data import scenes
from smarttrim_cli.data.samples import CaptionedImage, EntailmentSample, StatementSample
from smarttrim_cli.data.scenes import TASKS, Options, build, open_or_build, read_truth
from smarttrim_cli.data.scenes.layouts import LAYOUTS
from smarttrim_cli.errors import UserError
from tests.data.scene_language import caption_truth, pair_truth, truth

NUMBERS = {"train": 6, "calibration": 2, "val": 3, "test": 4}
SMALL = Options(num_images=NUMBERS)
OTHERS = ("nlvr2", "snli_ve", "captioning")
UNCHANGED = {
    "default": (
        {},
        "scenes-931524c1f3339b00",
        "ae04ba8ac887f7af",
        "d899f2c767c98c40",
    ),
    "quickstart": (
        {
            **{"seed": 1, "grid": 6, "cell_size": 8, "object_sizes": [5, 7], "jitter": 0},
            **{"min_objects": 4, "max_objects": 16},
        },
        "scenes-941d4b98479634a2",
        "ff47f3fad6152608",
        "89593e156ae0c1f0",
    ),
    "tiles": (
        {
            **{"seed": 3, "num_images": {"train": 4, "calibration": 1, "val": 1, "test": 1}},
            **{"image_size": 80, "grid": 8, "cell_size": 10, "min_objects": 61, "max_objects": 61},
            **{"object_sizes": [8], "background": {"kind": "tiles", "tiles": 6, "noise": 5}},
            **{"max_count": 4, "question_weights": {"relation": 0, "comparison": 0}},
        },
        "scenes-ec24ae8790979f1f",
        "36838679350b4f5c",
        "99d54194fe3b9b10",
    ),
}
"""Options; name of the folder, hash of the JSON files, hash of the pixels: by the code before other tasks."""


def quiet(line: str) -> None:
    pass


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One cache for the whole file."""
    root = tmp_path_factory.getbasetemp() / "scenes-cache"
    monkeypatch.setenv("SMARTTRIM_CACHE", str(root))
    return root


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("name", UNCHANGED)
def test_scenes_for_vqa_are_what_they_were_before_the_other_tasks(name: str, tmp_path: Path) -> None:
    """Shipped results depend on these: raise the version of the layout if they have to change."""
    given, folder_name, json_hash, pixel_hash = UNCHANGED[name]
    folder = open_or_build(Options.model_validate({"num_images": NUMBERS, **given}), tmp_path, quiet)
    texts, pixels = hashlib.sha256(), hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".png":
            pixels.update(np.asarray(Image.open(path)).tobytes())
        elif path.is_file() and path.name != "manifest.json":
            texts.update(path.name.encode() + path.read_bytes())
    assert (folder.name, texts.hexdigest()[:16], pixels.hexdigest()[:16]) == (
        folder_name,
        json_hash,
        pixel_hash,
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    assert list(manifest) == ["generator", "version", "options", "counts", "json_sha256", "images"]
    assert not {"nlvr2", "snli_ve", "captions"} & set(manifest["options"])


@pytest.mark.parametrize("task", TASKS)
def test_splits_are_read_with_all_their_images(task: str) -> None:
    assert scenes.splits(SMALL, task) == ["train", "calibration", "val", "test"]
    ids = set()
    for split in scenes.splits(SMALL, task):
        samples = scenes.read(SMALL, task, split, labelled=True, log=quiet)
        assert all(path.is_file() for sample in samples for path in sample.images)
        ids |= {sample.id for sample in samples}
    both = scenes.read(SMALL, task, "train+val+calibration+test", labelled=True, log=quiet)
    assert len(both) == len(ids)
    with pytest.raises(UserError, match="calibration, test, train, val"):
        scenes.read(SMALL, task, "dev", labelled=True, log=quiet)


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(UserError, match="no scenes for task ocr"):
        scenes.locate(SMALL, quiet, "ocr")


def test_nlvr2_has_the_official_layout() -> None:
    folder = scenes.locate(SMALL, quiet, "nlvr2")
    assert {path.name for path in folder.iterdir()} == {
        *("images", "manifest.json"),
        *(f"{prefix}{split}.json" for split in NUMBERS for prefix in ("", "scenes_")),
    }
    entries = lines(folder / "train.json")
    assert len(entries) == 8 * 4
    assert set(entries[0]) == {"sentence", "identifier", "label", "directory"}
    assert set(lines(folder / "val.json")[0]) == {"sentence", "identifier", "label"}
    assert {entry["identifier"] for entry in entries} == {
        f"train-0-{p}-{s}" for p in range(4) for s in range(8)
    }
    assert {path.relative_to(folder / "images").as_posix() for path in folder.rglob("train*.png")} == {
        f"train/0/train-0-{pair}-img{side}.png" for pair in range(4) for side in (0, 1)
    }
    assert (folder / "images" / "val" / "val-0-3-img1.png").is_file()


def test_nlvr2_statements_come_with_several_pairs_and_both_labels() -> None:
    samples = scenes.read(SMALL, "nlvr2", "train", labelled=True, log=quiet)
    objects = read_truth(scenes.locate(SMALL, quiet, "nlvr2"), "train").objects
    assert isinstance(samples[0], StatementSample)
    labels: dict[Any, list[Any]] = {}
    for sample in samples:
        left, right = (objects[path.stem] for path in sample.images)
        assert pair_truth(left, right, sample.text) is sample.label
        labels.setdefault(sample.statement, []).append((sample.text, sample.label))
    for found in labels.values():
        assert len({text for text, _ in found}) == 1
        assert Counter(label for _, label in found) == {True: 2, False: 2}


def test_nlvr2_boxes_are_of_the_left_and_the_right_image() -> None:
    known = read_truth(scenes.locate(SMALL, quiet, "nlvr2"), "train")
    assert set(known.boxes) == set(known.second_boxes)
    for identifier in known.boxes:
        pair = str(identifier).rsplit("-", 1)[0]
        for side, boxes in enumerate((known.boxes, known.second_boxes)):
            there = {item.box for item in known.objects[f"{pair}-img{side}"]}
            assert {box for _, box in boxes[identifier]} <= there
    assert any(known.second_boxes.values())


def test_snli_ve_has_the_official_layout() -> None:
    folder = scenes.locate(SMALL, quiet, "snli_ve")
    entries = lines(folder / "snli_ve_test.jsonl")
    assert len(entries) == 4 * 6
    assert set(entries[0]) == {
        *("annotator_labels", "captionID", "Flickr30K_ID", "gold_label", "pairID", "sentence1", "sentence2"),
    }
    assert {entry["Flickr30K_ID"] for entry in entries} == {str(4_000_000 + index) for index in range(4)}
    known = read_truth(folder, "test")
    for entry in entries:
        assert (folder / "flickr30k_images" / f"{entry['Flickr30K_ID']}.png").is_file()
        holds = truth(known.objects[int(entry["Flickr30K_ID"])], entry["sentence2"])
        assert {True: "entailment", None: "neutral", False: "contradiction"}[holds] == entry["gold_label"]
    samples = scenes.read(SMALL, "snli_ve", "test", labelled=True, log=quiet)
    assert isinstance(samples[0], EntailmentSample)
    assert [(s.text, s.label) for s in samples] == [(e["sentence2"], e["gold_label"]) for e in entries]
    assert set(known.boxes) == {sample.id for sample in samples}


def test_captions_have_the_layout_of_karpathys_splits() -> None:
    folder = scenes.locate(SMALL, quiet, "retrieval")
    assert folder == scenes.locate(SMALL, quiet, "captioning")
    file = json.loads((folder / "dataset_coco.json").read_text())
    assert file["dataset"] == "coco"
    assert Counter(entry["split"] for entry in file["images"]) == NUMBERS
    assert [entry["imgid"] for entry in file["images"]] == list(range(15))
    sentences = [sentence for entry in file["images"] for sentence in entry["sentences"]]
    assert [sentence["sentid"] for sentence in sentences] == list(range(15 * 5))
    for entry in file["images"]:
        assert (folder / entry["filepath"] / entry["filename"]).is_file()
        assert entry["filename"] == f"COCO_{entry['split']}_{entry['cocoid']:012d}.png"
        assert [sentence["sentid"] for sentence in entry["sentences"]] == entry["sentids"]
        for sentence in entry["sentences"]:
            assert " ".join(sentence["tokens"]) == sentence["raw"].replace(",", "").replace(":", "")
    samples = scenes.read(SMALL, "captioning", "val", labelled=True, log=quiet)
    objects = read_truth(folder, "val").objects
    assert len(samples) == 3
    for sample in samples:
        assert isinstance(sample, CaptionedImage)
        assert len(sample.captions) == 5
        assert all(caption_truth(objects[sample.id], caption) for caption in sample.captions)


@pytest.mark.parametrize("task", OTHERS)
def test_same_options_give_the_same_bytes(task: str, tmp_path: Path) -> None:
    one = content(scenes.locate(SMALL, quiet, task))
    assert one == content(open_or_build(SMALL, tmp_path, quiet, task))
    other = content(open_or_build(SMALL.model_copy(update={"seed": 1}), tmp_path, quiet, task))
    assert not {name for name in one if name.endswith(".png") and one[name] == other[name]}


@pytest.mark.parametrize("task", OTHERS)
def test_a_split_does_not_depend_on_the_others(task: str, tmp_path: Path) -> None:
    more = SMALL.num_images.model_copy(update={"train": 17})
    one = content(scenes.locate(SMALL, quiet, task))
    other = content(open_or_build(SMALL.model_copy(update={"num_images": more}), tmp_path, quiet, task))
    images = [name for name in one if name.endswith(".png")]
    assert len(images) >= 15
    assert all(one[name] == other[name] for name in images)


@pytest.mark.parametrize("task", OTHERS)
def test_splits_have_different_scenes(task: str) -> None:
    folder = scenes.locate(SMALL, quiet, task)
    seen = [
        objects
        for split in scenes.splits(SMALL, task)
        for objects in read_truth(folder, split).objects.values()
    ]
    assert len(set(seen)) == len(seen) >= 15


def test_a_layout_depends_on_its_own_options_only() -> None:
    changes: dict[str, dict[str, Any]] = {
        "vqa": {"questions_per_image": 2},
        "nlvr2": {"nlvr2": {"statements_per_set": 2}},
        "snli_ve": {"snli_ve": {"hypotheses_per_image": 3}},
        "captions": {"captions": {"captions_per_image": 2}},
    }
    for changed, values in changes.items():
        options = Options.model_validate({"num_images": NUMBERS, **values})
        for layout in LAYOUTS.values():
            same = layout.options(options) == layout.options(SMALL)
            assert same == (layout.name != changed)
    looks = SMALL.model_copy(update={"jitter": 0})
    assert all(layout.options(looks) != layout.options(SMALL) for layout in LAYOUTS.values())


def test_own_options_are_followed(tmp_path: Path) -> None:
    options = Options.model_validate(
        {
            "num_images": dict.fromkeys(NUMBERS, 9),
            "nlvr2": {"statements_per_set": 3, "colors_per_set": 2},
            "snli_ve": {"hypotheses_per_image": 3},
            "captions": {"captions_per_image": 2, "max_phrases": 2},
        }
    )
    nlvr2 = build(tmp_path / "nlvr2", options, quiet, "nlvr2")["val"]
    assert nlvr2 == {"images": 16, "instances": 24, "statements": 6}
    assert build(tmp_path / "ve", options, quiet, "snli_ve")["val"] == {"images": 9, "hypotheses": 27}
    assert build(tmp_path / "c", options, quiet, "retrieval")["val"] == {"images": 9, "captions": 18}


@pytest.mark.parametrize("task", OTHERS)
def test_damage_is_found_and_repaired(task: str, tmp_path: Path) -> None:
    log: list[str] = []
    folder = open_or_build(SMALL, tmp_path, log.append, task)
    before = content(folder)
    for damage in (max(folder.rglob("*.png")), max(folder.glob("scenes_*.json")), folder / "manifest.json"):
        log.clear()
        assert open_or_build(SMALL, tmp_path, log.append, task) == folder
        assert log == []
        damage.write_bytes(damage.read_bytes()[:-9])
        assert open_or_build(SMALL, tmp_path, log.append, task) == folder
        assert "damaged" in log[0]
        assert content(folder) == before


def test_scenes_of_another_task_are_replaced_but_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(out, SMALL, quiet, "nlvr2")
    assert build(out, SMALL, quiet, "snli_ve")["train"] == {"images": 6, "hypotheses": 36}
    assert not (out / "images").exists()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="notes.txt"):
        build(out, SMALL, quiet)
    assert (out / "snli_ve_train.jsonl").is_file()
