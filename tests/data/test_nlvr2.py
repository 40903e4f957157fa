from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from smarttrim_cli.data.images import load_rgb
from smarttrim_cli.data.nlvr2 import TASKS, Options, read, sentence_of, splits
from smarttrim_cli.data.samples import StatementSample
from smarttrim_cli.errors import UserError

TRAIN: list[dict[str, Any]] = [
    {
        "validation": {"103": "True"},
        "sentence": "An image shows one leather pencil case, displayed open. ",
        "left_url": "https://example.com/l.jpg",
        "writer": "55",
        "label": "True",
        "right_url": "https://example.com/r.jpg",
        "synset": "pencil case, pencil box",
        "query": "pencil case, pencil box0",
        "identifier": "train-10171-0-0",
        "extra_validations": {},
        "directory": 50,
    },
    {"sentence": "Both cases are open.", "label": "False", "identifier": "train-10171-1-1", "directory": 50},
]
DEV = [{"sentence": "The right image shows a dog.", "label": "True", "identifier": "dev-850-0-0"}]
TEST = [{"sentence": "There is a bus.", "identifier": "test2-3-2-1"}]


def write_lines(path: Path, entries: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """As one has it from the repository and the image archives."""
    for name, entries in (("train", TRAIN), ("dev", DEV), ("test2", TEST)):
        write_lines(tmp_path / "nlvr2" / "data" / f"{name}.json", entries)
    for folder, pair in (
        ("images/train/50", "train-10171-0"),
        ("images/train/50", "train-10171-1"),
        ("dev", "dev-850-0"),
        ("test2", "test2-3-2"),
    ):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for side in (0, 1):
            Image.new("RGB", (8, 8)).save(tmp_path / folder / f"{pair}-img{side}.png")
    return tmp_path


def options(folder: Path, **further: Any) -> Options:
    return Options(data_dir=str(folder), **further)


def test_reads_statements_about_two_images(data_dir: Path) -> None:
    first, second = read(options(data_dir), "nlvr2", "train", labelled=True)
    folder = data_dir / "images" / "train" / "50"
    assert first == StatementSample(
        id="train-10171-0-0",
        images=(folder / "train-10171-0-img0.png", folder / "train-10171-0-img1.png"),
        text=TRAIN[0]["sentence"],
        label=True,
        statement="train-10171--0",
    )
    assert second.label is False
    assert TASKS == ("nlvr2",) and splits(options(data_dir)) == ["dev", "test2", "train"]
    for sample in (first, second):
        assert [load_rgb(image, sample_id=sample.id).size for image in sample.images] == [(8, 8)] * 2


@pytest.mark.parametrize("place", ["", "nlvr2/data", "nlvr/nlvr2/data"])
@pytest.mark.parametrize("images", ["dev", "images/dev"])
def test_layouts_of_the_downloads(tmp_path: Path, place: str, images: str) -> None:
    write_lines(tmp_path / place / "dev.json", DEV)
    (tmp_path / images).mkdir(parents=True)
    (sample,) = read(options(tmp_path), "nlvr2", "dev", labelled=True)
    assert sample.images[1] == tmp_path / images / "dev-850-0-img1.png"


def test_images_can_be_elsewhere(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (data_dir / "dev").rename(tmp_path / "other" / "dev")
    (sample,) = read(options(data_dir, images_dir=str(tmp_path / "other")), "nlvr2", "dev", labelled=True)
    assert sample.images[0].is_file()  # type: ignore[union-attr]


def test_a_sentence_is_the_same_in_all_pairs_of_its_set() -> None:
    same = {sentence_of(f"dev-850-{pair}-0") for pair in range(4)}
    assert len(same) == 1
    assert sentence_of("dev-850-0-1") not in same and sentence_of("dev-851-0-0") not in same


def test_split_without_labels(data_dir: Path) -> None:
    (sample,) = read(options(data_dir), "nlvr2", "test2", labelled=False)
    assert sample.label is None
    with pytest.raises(UserError, match=r"test2\.json:1: split test2 has statements but no label"):
        read(options(data_dir), "nlvr2", "test2", labelled=True)


def test_splits_are_joined(data_dir: Path) -> None:
    samples = read(options(data_dir), "nlvr2", "train+dev", labelled=True)
    assert [sample.id for sample in samples] == ["train-10171-0-0", "train-10171-1-1", "dev-850-0-0"]


def test_unknown_split_names_those_present(data_dir: Path) -> None:
    (data_dir / "nlvr2" / "data" / "package.json").write_text('{"name": "x"}')
    with pytest.raises(UserError, match="no statements for split test1\n.*there: dev, test2, train"):
        read(options(data_dir), "nlvr2", "test1", labelled=True)


def test_missing_folders(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: cannot read the data folder"):
        splits(options(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="It has no JSON-lines file"):
        read(options(tmp_path / "empty"), "nlvr2", "dev", labelled=True)
    (data_dir / "dev").rename(data_dir / "gone")
    with pytest.raises(UserError, match=r"images/dev: no such folder of images\n.*images_dir"):
        read(options(data_dir), "nlvr2", "dev", labelled=True)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"sentence": "x", "identifier": "dev-1-0-0", ', r":2: not valid JSON: .*column"),
        ("[]", ":2: the line is not a JSON object"),
        ('{"identifier": "dev-1-0-0", "label": "True"}', ":2: the key sentence is missing"),
        ('{"sentence": 3, "identifier": "dev-1-0-0", "label": "True"}', ":2: sentence is 3, not a text"),
        ('{"sentence": "x", "label": "True"}', ":2: the key identifier is missing"),
        ('{"sentence": "x", "identifier": "dev-1", "label": "True"}', ":2: .* not split-set-pair-sentence"),
        ('{"sentence": "x", "identifier": "dev-1-0-0", "label": "yes"}', ":2: label is 'yes', not True or"),
        (
            '{"sentence": "x", "identifier": "dev-850-0-0", "label": "True"}',
            "two samples have the id dev-850",
        ),
    ],
)
def test_damaged_lines_are_named(data_dir: Path, line: str, problem: str) -> None:
    path = data_dir / "nlvr2" / "data" / "dev.json"
    path.write_text(json.dumps(DEV[0]) + "\n" + line + "\n")
    with pytest.raises(UserError, match=problem):
        read(options(data_dir), "nlvr2", "dev", labelled=True)


def test_other_files_beside_are_left_alone(data_dir: Path) -> None:
    known = splits(Options(data_dir=str(data_dir)))
    (data_dir / "deep.json").write_text("[" * 200_000)
    for path in list(data_dir.rglob("*.json")):
        (path.parent / "other.json").write_text("[" * 200_000)
    assert splits(Options(data_dir=str(data_dir))) == known


def test_a_damaged_first_line_is_named(data_dir: Path) -> None:
    file = data_dir / "nlvr2" / "data" / "dev.json"
    good = file.read_text(encoding="utf-8")
    file.write_text("\n\n" + good, encoding="utf-8")
    assert len(read(options(data_dir), "nlvr2", "dev", labelled=True)) == 1
    file.write_text('{"sentence": \n' + good, encoding="utf-8")
    with pytest.raises(UserError, match=r"dev\.json:1: not valid JSON"):
        read(options(data_dir), "nlvr2", "dev", labelled=True)
    file.write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"dev\.json: the file is empty"):
        read(options(data_dir), "nlvr2", "dev", labelled=True)
