from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from smarttrim_cli.data.samples import ENTAILMENT, EntailmentSample
from smarttrim_cli.data.snli_ve import TASKS, Options, read, splits
from smarttrim_cli.errors import UserError


def entry(number: int, label: str = "neutral", image: str = "3416050480") -> dict[str, Any]:
    return {
        "annotator_labels": [label],
        "captionID": f"{image}.jpg#4",
        "gold_label": label,
        "pairID": f"{image}.jpg#4r{number}n",
        "sentence1": "A person on a horse jumps over a broken down airplane.",
        "sentence1_binary_parse": "( ( ( A person ) ) )",
        "sentence2": "A person is training his horse for a competition.",
        "Flickr30K_ID": image,
    }


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    for name, labels in (("train", ["neutral", "-", "entailment"]), ("dev", ["contradiction"])):
        lines = [json.dumps(entry(number + 10 * len(labels), label)) for number, label in enumerate(labels)]
        (tmp_path / f"snli_ve_{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "flickr30k_images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "flickr30k_images" / "3416050480.jpg")
    return tmp_path


def options(folder: Path, **further: Any) -> Options:
    return Options(data_dir=str(folder), **further)


def test_reads_hypotheses_and_leaves_the_undecided_out(data_dir: Path) -> None:
    said: list[str] = []
    first, second = read(options(data_dir), "snli_ve", "train", labelled=True, log=said.append)
    assert first == EntailmentSample(
        id="3416050480.jpg#4r30n",
        images=(data_dir / "flickr30k_images" / "3416050480.jpg",),
        text="A person is training his horse for a competition.",
        label="neutral",
    )
    assert second.label == "entailment"
    assert len(said) == 1 and said[0].startswith("snli_ve_train.jsonl: 1 hypotheses without agreement")
    assert TASKS == ("snli_ve",) and splits(options(data_dir)) == ["dev", "train"]


def test_classes_have_the_indices_of_meter() -> None:
    assert [ENTAILMENT.index(name) for name in ("contradiction", "neutral", "entailment")] == [0, 1, 2]


@pytest.mark.parametrize("name", ["flickr30k-images", "Flickr30K/images", "images"])
def test_other_names_of_the_image_folder(data_dir: Path, name: str) -> None:
    (data_dir / name).parent.mkdir(exist_ok=True)
    (data_dir / "flickr30k_images").rename(data_dir / name)
    (sample,) = read(options(data_dir), "snli_ve", "dev", labelled=True)
    assert sample.images == (data_dir / name / "3416050480.jpg",)


def test_images_can_be_elsewhere_and_png(data_dir: Path) -> None:
    folder = data_dir / "pictures"
    folder.mkdir()
    (folder / "README").write_text("no image")
    Image.new("RGB", (8, 8)).save(folder / "3416050480.png")
    (sample,) = read(options(data_dir, images_dir=str(folder)), "snli_ve", "dev", labelled=True)
    assert sample.images == (folder / "3416050480.png",)


def test_image_id_with_a_suffix(data_dir: Path) -> None:
    line = {**entry(1), "Flickr30K_ID": "3416050480.jpg"}
    (data_dir / "snli_ve_test.jsonl").write_text(json.dumps(line))
    (sample,) = read(options(data_dir), "snli_ve", "test", labelled=True)
    assert sample.images[0].is_file()  # type: ignore[union-attr]


def test_no_labels(data_dir: Path) -> None:
    line = {key: value for key, value in entry(1).items() if key != "gold_label"}
    (data_dir / "snli_ve_test.jsonl").write_text(json.dumps(line))
    (sample,) = read(options(data_dir), "snli_ve", "test", labelled=False)
    assert sample.label is None
    with pytest.raises(UserError, match=r"snli_ve_test\.jsonl:1: split test has hypotheses but no label"):
        read(options(data_dir), "snli_ve", "test", labelled=True)


def test_missing_things(data_dir: Path) -> None:
    with pytest.raises(UserError, match="no hypotheses for split val\n.*there: dev, train"):
        read(options(data_dir), "snli_ve", "val", labelled=True)
    (data_dir / "flickr30k_images" / "3416050480.jpg").unlink()
    with pytest.raises(UserError, match="flickr30k_images: no image in this folder"):
        read(options(data_dir), "snli_ve", "dev", labelled=True)
    (data_dir / "flickr30k_images").rmdir()
    with pytest.raises(UserError, match="flickr30k_images: no such folder of images"):
        read(options(data_dir), "snli_ve", "dev", labelled=True)
    (data_dir / "snli_ve_dev.jsonl").write_text("\n")
    (data_dir / "images").mkdir()
    Image.new("RGB", (8, 8)).save(data_dir / "images" / "1.jpg")
    with pytest.raises(UserError, match=r"snli_ve_dev\.jsonl: the file is empty"):
        read(options(data_dir), "snli_ve", "dev", labelled=True)


@pytest.mark.parametrize("key", ["pairID", "sentence2", "Flickr30K_ID"])
def test_missing_keys_are_named(data_dir: Path, key: str) -> None:
    line = {name: value for name, value in entry(1).items() if name != key}
    (data_dir / "snli_ve_dev.jsonl").write_text(json.dumps(entry(0)) + "\n" + json.dumps(line))
    with pytest.raises(UserError, match=rf"snli_ve_dev\.jsonl:2: the key {key} is missing"):
        read(options(data_dir), "snli_ve", "dev", labelled=True)


def test_unknown_label_is_an_error(data_dir: Path) -> None:
    (data_dir / "snli_ve_dev.jsonl").write_text(json.dumps(entry(1, "maybe")))
    with pytest.raises(UserError, match="gold_label is 'maybe', not one of contradiction, neutral, entail"):
        read(options(data_dir), "snli_ve", "dev", labelled=True)


def test_a_split_without_any_agreement(data_dir: Path) -> None:
    (data_dir / "snli_ve_dev.jsonl").write_text(json.dumps(entry(1, "-")), encoding="utf-8")
    with pytest.raises(UserError, match=r"snli_ve_dev\.jsonl: annotators agree on none of the 1 hypotheses"):
        read(options(data_dir), "snli_ve", "dev", labelled=True)
