from __future__ import annotations

import builtins
import io
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from smarttrim_cli.data.hf_datasets import TASKS, Options, read, splits
from smarttrim_cli.data.images import BadSample, load_rgb
from smarttrim_cli.data.samples import EmbeddedImage, Sample, StatementSample, VqaSample
from smarttrim_cli.errors import UserError

datasets = pytest.importorskip("datasets")
parquet = pytest.importorskip("pyarrow.parquet")
GREYS = (10, 20, 30)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
    datasets.disable_progress_bars()


def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (4, 4), (grey,) * 3) for grey in GREYS]


def questions() -> Any:
    """As VQA v2 is offered on the hub."""
    answers = [[{"answer": word, "answer_id": n} for n in range(10)] for word in ("red", "two", "yes")]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "question": datasets.Value("string"),
            "question_id": datasets.Value("int64"),
            "answers": datasets.List(
                {"answer": datasets.Value("string"), "answer_id": datasets.Value("int64")}
            ),
            "answer_type": datasets.Value("string"),
        }
    )
    content = {
        "image": pictures(),
        "question": ["what color?", "how many?", "is it?"],
        "question_id": [7, 8, 9],
        "answers": answers,
        "answer_type": ["other", "number", "yes/no"],
    }
    return datasets.Dataset.from_dict(content, features=features)


def grey(image: Any) -> int:
    value = load_rgb(image, sample_id=1).getpixel((0, 0))
    assert isinstance(value, tuple)
    return int(value[0])


def save_dict(folder: Path) -> None:
    datasets.DatasetDict({"train": questions(), "validation": questions()}).save_to_disk(str(folder))


def save_shards(folder: Path) -> None:
    (folder / "data").mkdir(parents=True)
    for number, rows in enumerate([[0, 1], [2]]):
        questions().select(rows).to_parquet(str(folder / "data" / f"train-0000{number}-of-00002.parquet"))
    questions().to_parquet(str(folder / "data" / "validation-00000-of-00001.parquet"))


def save_files(folder: Path) -> None:
    folder.mkdir()
    for split in ("train", "validation"):
        questions().to_parquet(str(folder / f"{split}.parquet"))


def save_folders(folder: Path) -> None:
    for split in ("train", "validation"):
        (folder / split).mkdir(parents=True)
        questions().to_parquet(str(folder / split / "0.parquet"))


def test_paths_inside_images_start_from_the_folder(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    cells = []
    for number, picture in enumerate(pictures()):
        picture.save(tmp_path / "img" / f"{number}.png")
        cells.append({"bytes": None, "path": f"img/{number}.png"})
    stored = questions()
    table = datasets.Dataset.from_dict(
        {**{name: stored[name] for name in stored.column_names if name != "image"}, "image": cells},
        features=stored.features,
    )
    parquet.write_table(table.data.table, tmp_path / "train.parquet")  # theirs would put the files inside
    found = read(Options(data_dir=str(tmp_path)), "vqa", "train", labelled=True)
    assert [grey(sample.images[0]) for sample in found] == list(GREYS)


@pytest.mark.parametrize("save", [save_dict, save_shards, save_files, save_folders])
def test_formats_on_disk(tmp_path: Path, save: Callable[[Path], None]) -> None:
    save(tmp_path / "data [set]")
    options = Options(data_dir=str(tmp_path / "data [set]"), columns={"id": "question_id"})
    assert splits(options, "vqa") == ["train", "validation"]
    found = read(options, "vqa", "train", labelled=True)
    assert [grey(sample.images[0]) for sample in found] == list(GREYS)
    first = found[0]
    assert isinstance(first, VqaSample)
    assert (first.id, first.text, first.answers) == (7, "what color?", ("red",) * 10)
    assert (first.major_answer, first.answer_type, first.question_type) == ("red", "other", None)
    with pytest.raises(UserError, match="no samples for split test\n.*there: train, validation"):
        read(options, "vqa", "test", labelled=True)


def test_a_single_data_set_is_split_train(tmp_path: Path) -> None:
    questions().save_to_disk(str(tmp_path))
    options = Options(data_dir=str(tmp_path))
    assert splits(options, "vqa") == ["train"]
    assert [sample.id for sample in read(options, "vqa", "train", labelled=True)] == [
        "train:0",
        "train:1",
        "train:2",
    ]


def test_shards_as_the_hub_names_them(tmp_path: Path) -> None:
    """With the hash of older hubs; in the folder of a configuration, where a folder's name is no split."""
    for name in ("train-00000-of-00002-8f3c0b7a4d1e2f30", "train-00001-of-00002-77cc0b7a4d1e2f30"):
        (tmp_path / "one" / "data").mkdir(parents=True, exist_ok=True)
        questions().to_parquet(str(tmp_path / "one" / "data" / f"{name}.parquet"))
    for split in ("train", "test"):
        (tmp_path / "two" / "default").mkdir(parents=True, exist_ok=True)
        questions().to_parquet(str(tmp_path / "two" / "default" / f"{split}-00000-of-00001.parquet"))
    assert splits(Options(data_dir=str(tmp_path / "one")), "vqa") == ["train"]
    assert splits(Options(data_dir=str(tmp_path / "two")), "vqa") == ["test", "train"]
    (tmp_path / "two" / "other").mkdir()
    questions().to_parquet(str(tmp_path / "two" / "other" / "test-00000-of-00001.parquet"))
    assert splits(Options(data_dir=str(tmp_path / "two")), "vqa") == [
        "default/test",
        "default/train",
        "other/test",
    ]


def test_names_of_images_are_no_splits(tmp_path: Path) -> None:
    """The library sorts files by words such as val in their names, if it may."""
    folder = tmp_path / "own [data]" / "train"
    folder.mkdir(parents=True)
    names = ["COCO_val2014_1.png", "test-1.png", "a.png"]
    for name, picture in zip(names, pictures(), strict=True):
        picture.save(folder / name)
    lines = [json.dumps({"file_name": name, "text": [name]}) for name in names]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    options = Options(data_dir=str(folder.parent), columns={"captions": "text"})
    found = read(options, "retrieval", "train", labelled=True)
    assert sorted(sample.captions[0] for sample in found) == sorted(names)  # type: ignore[union-attr]


@pytest.mark.parametrize("split", ["train", "test"])
def test_image_folder(tmp_path: Path, split: str) -> None:
    folder = tmp_path if split == "train" else tmp_path / split
    folder.mkdir(exist_ok=True)
    lines = []
    for number, picture in enumerate(pictures()):
        picture.save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": [f"caption {number}"]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    options = Options(data_dir=str(tmp_path), columns={"captions": "text"})
    assert splits(options, "retrieval") == [split]
    found = read(options, "retrieval", split, labelled=True)
    assert [(grey(sample.images[0]), sample.captions) for sample in found] == [  # type: ignore[union-attr]
        (value, (f"caption {number}",)) for number, value in enumerate(GREYS)
    ]


def pairs(label: Any, labels: list[Any], **columns: Any) -> Any:
    features = {name: feature for name, (feature, _) in columns.items()}
    content = {name: values for name, (_, values) in columns.items()}
    return datasets.Dataset.from_dict(
        {**content, "statement": ["a", "b", "c"], "label": labels},
        features=datasets.Features({**features, "statement": datasets.Value("string"), "label": label}),
    )


def test_pairs_in_two_columns_with_classes_by_name(tmp_path: Path) -> None:
    image = datasets.Image()
    classes = datasets.ClassLabel(names=["True", "False"])
    pairs(classes, [0, 1, -1], left=(image, pictures()), right=(image, pictures()[::-1])).save_to_disk(
        str(tmp_path)
    )
    options = Options(data_dir=str(tmp_path), columns={"images": ["left", "right"]})
    found = read(options, "nlvr2", "train", labelled=False)
    assert [sample.label for sample in found] == [True, False, None]  # type: ignore[union-attr]
    assert [[grey(image) for image in sample.images] for sample in found] == [[10, 30], [20, 20], [30, 10]]
    said: list[str] = []
    found = read(options, "nlvr2", "train", labelled=True, log=said.append)
    assert [sample.label for sample in found] == [True, False]  # type: ignore[union-attr]
    assert said[0].endswith("1 rows without a label (-1) are left out")


def test_pairs_in_a_list(tmp_path: Path) -> None:
    lists = [[picture, pictures()[0]] for picture in pictures()]
    images = (datasets.List(datasets.Image()), lists)
    pairs(datasets.Value("bool"), [True, False, True], images=images).save_to_disk(str(tmp_path / "good"))
    found = read(Options(data_dir=str(tmp_path / "good")), "nlvr2", "train", labelled=True)
    assert isinstance(found[0], StatementSample) and found[0].label is True
    assert [[grey(image) for image in sample.images] for sample in found] == [[10, 10], [20, 10], [30, 10]]
    lists[1].append(lists[0][0])
    pairs(datasets.Value("bool"), [True] * 3, images=images).save_to_disk(str(tmp_path / "bad"))
    with pytest.raises(UserError, match="row 1: images has 3 images, not 2"):
        read(Options(data_dir=str(tmp_path / "bad")), "nlvr2", "train", labelled=True)


def table(tmp_path: Path, **columns: list[Any]) -> Options:
    datasets.Dataset.from_dict(columns).save_to_disk(str(tmp_path))
    return Options(data_dir=str(tmp_path))


def test_images_as_paths_and_as_bytes(tmp_path: Path) -> None:
    hypotheses = {"hypothesis": ["x"], "label": ["neutral"]}
    (sample,) = read(table(tmp_path / "p", image=["a.png"], **hypotheses), "snli_ve", "train", labelled=True)
    assert sample.images == (tmp_path / "p" / "a.png",)
    data = io.BytesIO()
    pictures()[1].save(data, "PNG")
    options = table(tmp_path / "b", image=[data.getvalue()], **hypotheses)
    (sample,) = read(options, "snli_ve", "train", labelled=True)
    assert grey(sample.images[0]) == 20


@pytest.fixture(params=[True, False])
def drawn(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether a program around has the package draw its bars."""
    before = datasets.are_progress_bars_disabled()
    (datasets.enable_progress_bars if request.param else datasets.disable_progress_bars)()
    yield request.param
    (datasets.disable_progress_bars if before else datasets.enable_progress_bars)()


def test_the_package_draws_no_bars(drawn: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Progress is the toolkit's own, and none with -q; what a program around has set is as it was."""
    table = datasets.Dataset.from_dict({"image": [b"x"], "hypothesis": ["y"], "label": ["neutral"]})
    table.to_parquet(tmp_path / "train.parquet")
    capfd.readouterr()
    read(Options(data_dir=str(tmp_path)), "snli_ve", "train", labelled=True)
    assert capfd.readouterr() == ("", "") and datasets.are_progress_bars_disabled() is not drawn


def test_broken_image_names_sample_and_place(tmp_path: Path) -> None:
    options = table(tmp_path, image=[b"\x89PNG broken"], captions=[["a cat"]], id=["seven"])
    (sample,) = read(options, "captioning", "train", labelled=True)
    with pytest.raises(BadSample, match="sample seven, .*split train, row 0, column image: .*not an image"):
        load_rgb(sample.images[0], sample_id=sample.id)


def test_images_travel_to_worker_processes(tmp_path: Path) -> None:
    questions().save_to_disk(str(tmp_path))
    samples: list[Sample] = read(Options(data_dir=str(tmp_path)), "vqa", "train", labelled=True)
    copy = pickle.loads(pickle.dumps(samples[2].images[0]))
    assert isinstance(copy, EmbeddedImage) and grey(copy) == 30


def test_wrong_columns_and_values(tmp_path: Path) -> None:
    options = table(tmp_path, image=["a.png", "b.png"], hypothesis=["x", "y"], label=["neutral", "no"])
    with pytest.raises(UserError, match="split train, row 1: label is 'no', not one of"):
        read(options, "snli_ve", "train", labelled=True)
    with pytest.raises(UserError, match=r"no column 'question' \(key question\)\n.*image, hypothesis, label"):
        read(options, "vqa", "train", labelled=True)
    other = Options(data_dir=str(tmp_path), columns={"hypothesis": "text"})
    with pytest.raises(UserError, match=r"no column 'text' \(key hypothesis\)"):
        read(other, "snli_ve", "train", labelled=True)
    with pytest.raises(UserError, match="row 0: split train has samples but no label"):
        read(table(tmp_path / "u", image=["a"], hypothesis=["x"]), "snli_ve", "train", labelled=True)
    with pytest.raises(ValidationError, match="unknown key 'picture'"):
        Options(data_dir="x", columns={"picture": "img"})
    with pytest.raises(ValidationError, match="only images can be a list of columns"):
        Options(data_dir="x", columns={"image": ["a", "b"]})


def test_images_that_are_missing_or_of_another_kind(tmp_path: Path) -> None:
    hypotheses = {"hypothesis": ["x", "y"], "label": ["neutral"] * 2}
    options = table(tmp_path / "null", image=["a.png", None], **hypotheses)
    with pytest.raises(UserError, match="row 1: image: null is no path of an image"):
        read(options, "snli_ve", "train", labelled=True)
    options = table(tmp_path / "list", image=[["a.png"], ["b.png"]], **hypotheses)
    with pytest.raises(UserError, match=r"'image' \(key image\) holds no images, but lists of string"):
        read(options, "snli_ve", "train", labelled=True)
    statements = {"statement": ["x"], "label": [True]}
    options = table(tmp_path / "pair", images=[["a.png", None]], **statements)
    with pytest.raises(UserError, match="row 0: images: null is no path of an image"):
        read(options, "nlvr2", "train", labelled=True)
    options = table(tmp_path / "single", images=["a.png"], **statements)
    with pytest.raises(UserError, match="images has single images, not lists of 2"):
        read(options, "nlvr2", "train", labelled=True)


@pytest.mark.parametrize(
    ("task", "images", "kind"),
    [
        ("captioning", [3, 4], "int64"),
        ("retrieval", [[b"a", b"b"], [b"c"]], "lists of binary"),
        ("captioning", [{"a": "x"}, {"a": "y"}], "{a}"),
    ],
)
def test_columns_without_images(tmp_path: Path, task: str, images: list[Any], kind: str) -> None:
    options = table(tmp_path, image=images, captions=[["a cat"], ["a dog"]])
    with pytest.raises(UserError, match=f"split train: column 'image' .* holds no images, but {kind}\n"):
        read(options, task, "train", labelled=True)


def test_images_as_bytes_and_path(tmp_path: Path) -> None:
    options = table(tmp_path, image=[{"bytes": None, "path": "a.png"}], captions=[["a cat"]])
    assert len(read(options, "captioning", "train", labelled=True)) == 1


def test_a_class_without_a_name(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    path = (datasets.Value("string"), ["a.png", "b.png", "c.png"])
    data = pairs(datasets.ClassLabel(names=["False", "True"]), [0, 1, 1], left=path, right=path)
    broken = data.data.table.set_column(data.column_names.index("label"), "label", [arrow.array([0, 7, 1])])
    datasets.Dataset(broken, info=data.info).save_to_disk(str(tmp_path))
    options = Options(data_dir=str(tmp_path), columns={"images": ["left", "right"]})
    with pytest.raises(UserError, match="row 1: label is 7, but there are 2 classes"):
        read(options, "nlvr2", "train", labelled=True)


def test_columns_that_a_task_does_not_read_are_named(tmp_path: Path) -> None:
    stored = table(tmp_path, image=["a.png"], hypothesis=["x"], label=["neutral"])
    options = Options(data_dir=stored.data_dir, columns={"captions": "nowhere", "hypothesis": "hypothesis"})
    lines: list[str] = []
    read(options, "snli_ve", "train", labelled=True, log=lines.append)
    assert lines == ["task.data.columns: snli_ve does not read captions"]


def test_classes_that_a_task_does_not_read_are_no_labels(tmp_path: Path) -> None:
    """A column of classes beside questions: none of them is left out for it."""
    features = {name: datasets.Value("string") for name in ("image", "question", "answer")}
    rows = {"image": ["a.png"], "question": ["is it?"], "answer": ["yes"], "label": [-1]}
    classes = datasets.ClassLabel(names=["easy", "hard"])
    kinds = datasets.Features({**features, "label": classes})
    datasets.Dataset.from_dict(rows, features=kinds).save_to_disk(str(tmp_path))
    assert len(read(Options(data_dir=str(tmp_path)), "vqa", "train", labelled=True)) == 1


def test_captions_to_be_written_need_no_column(tmp_path: Path) -> None:
    options = table(tmp_path, image=["a.png", "b.png"])
    assert len(read(options, "captioning", "train", labelled=False)) == 2
    for task, labelled in (("captioning", True), ("retrieval", False)):
        with pytest.raises(UserError, match="no column 'captions'"):
            read(options, task, "train", labelled=labelled)


def test_damaged_folders(tmp_path: Path) -> None:
    options = Options(data_dir=str(tmp_path))
    with pytest.raises(UserError, match="It has no data in a known format"):
        read(options, "vqa", "train", labelled=True)
    (tmp_path / "train.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="split train: cannot be read: "):
        read(options, "vqa", "train", labelled=True)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["val"]}')
    with pytest.raises(UserError, match="split val: cannot be read: "):
        read(options, "vqa", "val", labelled=True)
    (tmp_path / "dataset_dict.json").write_text("[]")
    with pytest.raises(UserError, match=r"dataset_dict\.json: no list of splits"):
        splits(options, "vqa")


def test_a_script_in_the_folder_is_not_run(tmp_path: Path) -> None:
    save_files(tmp_path / "vqa")
    (tmp_path / "vqa" / "vqa.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n1 / 0\n")
    assert len(read(Options(data_dir=str(tmp_path / "vqa")), "vqa", "train", labelled=True)) == 3
    assert not (tmp_path / "ran").exists()


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_files(tmp_path / "vqa")
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"not installed\n  pip install 'smarttrim-cli\[datasets\]'"):
        read(Options(data_dir=str(tmp_path / "vqa")), "vqa", "train", labelled=True)
    assert set(TASKS) == {"vqa", "nlvr2", "snli_ve", "retrieval", "captioning"}


def test_rows_of_an_image_are_gathered(tmp_path: Path) -> None:
    """A row per caption, as Flickr's list has it: else captions of the other rows were wrong ones."""
    one, two, _ = pictures()
    features = datasets.Features(
        {"image": datasets.Image(), "captions": datasets.List(datasets.Value("string"))}
    )
    rows = {"image": [one, two, one, None, None], "captions": [["a"], ["b"], ["c"], ["d"], ["e"]]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path))
    said: list[str] = []
    found: list[Any] = read(
        Options(data_dir=str(tmp_path)), "retrieval", "train", labelled=True, log=said.append
    )
    assert [sample.captions for sample in found] == [("a", "c"), ("b",), ("d",), ("e",)]
    assert [sample.id for sample in found] == ["train:0", "train:1", "train:3", "train:4"]
    assert said == ["train: 5 entries of 4 images; captions of an image are gathered"]


def test_rows_of_an_image_file_are_gathered(tmp_path: Path) -> None:
    lines = [{"file_name": f"{name}.png", "captions": [f"{name} {n}"]} for n in (1, 2) for name in "xy"]
    (tmp_path / "train").mkdir()
    for name, picture in zip("xy", pictures(), strict=False):
        picture.save(tmp_path / "train" / f"{name}.png")
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    found: list[Any] = read(Options(data_dir=str(tmp_path)), "retrieval", "train", labelled=True)
    assert [sample.captions for sample in found] == [("x 1", "x 2"), ("y 1", "y 2")]
