from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from smarttrim_cli.data import vqa_v2
from smarttrim_cli.data.samples import VqaSample
from smarttrim_cli.data.scenes import Options, build, locate, open_or_build, read_truth
from smarttrim_cli.data.scenes.layouts import Layout
from smarttrim_cli.data.scenes.options import SPLITS
from smarttrim_cli.data.scenes.world import Scene
from smarttrim_cli.errors import UserError

SMALL = Options(num_images={"train": 6, "calibration": 2, "val": 3, "test": 4})


def questions(folder: Path, split: str) -> list[VqaSample]:
    return vqa_v2.read_folder(folder, split, labelled=True)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def folder(tmp_path: Path, log: list[str]) -> Path:
    return open_or_build(SMALL, tmp_path, log.append)


def test_same_options_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = open_or_build(SMALL, tmp_path / "again", lambda line: None)
    assert content(folder) == content(again)
    other = open_or_build(SMALL.model_copy(update={"seed": 1}), tmp_path, lambda line: None)
    assert other != folder
    assert (
        content(folder)["train/COCO_train_000001000000.png"]
        != content(other)["train/COCO_train_000001000000.png"]
    )


def test_a_split_does_not_depend_on_the_others(folder: Path, tmp_path: Path) -> None:
    larger = SMALL.model_copy(update={"num_images": SMALL.num_images.model_copy(update={"train": 9})})
    one, other = content(folder), content(open_or_build(larger, tmp_path, lambda line: None))
    assert {name for name in one if one[name] != other[name]} == {
        "manifest.json",
        "scenes_train.json",
        "v2_OpenEnded_mscoco_train_questions.json",
        "v2_mscoco_train_annotations.json",
    }


def test_layout_is_the_official_one(folder: Path) -> None:
    questions = json.loads((folder / "v2_OpenEnded_mscoco_val_questions.json").read_text())
    annotations = json.loads((folder / "v2_mscoco_val_annotations.json").read_text())
    assert set(questions) == {"info", "license", "data_type", "data_subtype", "task_type", "questions"}
    assert set(annotations) == {"info", "license", "data_type", "data_subtype", "annotations"}
    assert (questions["data_type"], questions["data_subtype"], questions["task_type"]) == (
        "mscoco",
        "val",
        "Open-Ended",
    )
    assert len(questions["questions"]) == len(annotations["annotations"]) == 3 * 4
    for question, annotation in zip(questions["questions"], annotations["annotations"], strict=True):
        assert set(question) == {"image_id", "question", "question_id"}
        assert set(annotation) == {
            *("question_id", "image_id", "question_type", "answer_type", "multiple_choice_answer", "answers"),
        }
        answer = annotation["multiple_choice_answer"]
        assert [a["answer_id"] for a in annotation["answers"]] == list(range(1, 11))
        assert all(a["answer"] == answer and a["answer_confidence"] == "yes" for a in annotation["answers"])
        kind = "yes/no" if answer in ("yes", "no") else "number" if answer in "0123456" else "other"
        assert annotation["answer_type"] == kind


def test_ids_are_unique_over_all_splits(folder: Path) -> None:
    samples = [sample for split in SPLITS for sample in questions(folder, split)]
    assert len(samples) == 15 * 4
    assert len({sample.id for sample in samples}) == len(samples)
    assert len({sample.image_id for sample in samples}) == 15
    assert all(sample.images[0].is_file() for sample in samples)


def test_truth_has_objects_and_boxes(folder: Path) -> None:
    truth = read_truth(folder, "train")
    samples = questions(folder, "train")
    assert set(truth.objects) == {sample.image_id for sample in samples}
    assert set(truth.boxes) == {sample.id for sample in samples}
    for sample in samples:
        boxes = {item.box for item in truth.objects[sample.image_id]}
        assert all(box in boxes for _, box in truth.boxes[sample.id])
        if sample.question_type == "count":
            assert len(truth.boxes[sample.id]) == int((sample.answers or ("",))[0])
    with pytest.raises(UserError, match="no such file"):
        read_truth(folder, "nosplit")


def test_a_good_cache_is_used_as_it_is(folder: Path, tmp_path: Path, log: list[str]) -> None:
    log.clear()
    (folder / "train").touch()
    assert open_or_build(SMALL, tmp_path, log.append) == folder
    assert log == []


def remove_an_image(folder: Path) -> None:
    (folder / "train" / "COCO_train_000001000002.png").unlink()


def truncate_an_image(folder: Path) -> None:
    path = folder / "test" / "COCO_test_000004000001.png"
    path.write_bytes(path.read_bytes()[:-50])


def add_an_image(folder: Path) -> None:
    (folder / "val" / "COCO_val_000009999999.png").write_bytes(b"x")


def remove_a_split(folder: Path) -> None:
    for path in (folder / "val").iterdir():
        path.unlink()
    (folder / "val").rmdir()


def truncate_json(folder: Path) -> None:
    path = folder / "v2_mscoco_train_annotations.json"
    path.write_text(path.read_text()[:-100])


def remove_json(folder: Path) -> None:
    (folder / "scenes_test.json").unlink()


def change_json(folder: Path) -> None:
    path = folder / "v2_OpenEnded_mscoco_train_questions.json"
    path.write_text(path.read_text().replace("color", "shape"))


def remove_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def break_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"options": ')


@pytest.mark.parametrize(
    "damage",
    [
        remove_an_image,
        truncate_an_image,
        add_an_image,
        remove_a_split,
        truncate_json,
        remove_json,
        change_json,
        remove_manifest,
        break_manifest,
    ],
)
def test_damage_is_found_and_repaired(folder: Path, tmp_path: Path, log: list[str], damage: object) -> None:
    before = content(folder)
    log.clear()
    assert callable(damage)
    damage(folder)
    assert open_or_build(SMALL, tmp_path, log.append) == folder
    assert "damaged" in log[0]
    assert content(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name]


def test_what_killed_builds_left_is_ignored_and_removed_a_day_later(tmp_path: Path, folder: Path) -> None:
    fresh, old = (tmp_path / f".{folder.name}.building-{pid}-1" for pid in (1, 2))
    for leftover in (fresh, old):
        (leftover / "train").mkdir(parents=True)
    os.utime(old, (0, 0))
    remove_manifest(folder)
    assert open_or_build(SMALL, tmp_path, lambda line: None) == folder
    assert sorted(tmp_path.iterdir()) == [fresh, folder]


def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(folder: Path, scene: Scene) -> None:
        if "_val_" in folder.name:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("smarttrim_cli.data.scenes.write_vqa.write_image", full_disk)
    with pytest.raises(UserError, match="No space left"):
        open_or_build(SMALL, tmp_path, lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_at_once_share_one_good_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=open_or_build, args=(SMALL, tmp_path, len)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    log: list[str] = []
    folder = open_or_build(SMALL, tmp_path, log.append)
    assert log == []
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_the_loser_of_a_race_keeps_the_winners_folder(
    tmp_path: Path, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from smarttrim_cli.data.scenes import cache

    real, winner = cache._write_all, []

    def other_process_is_faster(folder: Path, options: Options, layout: Layout) -> None:
        real(folder, options, layout)
        monkeypatch.setattr(cache, "_write_all", real)
        winner.append(open_or_build(options, tmp_path, log.append).stat().st_ino)

    monkeypatch.setattr(cache, "_write_all", other_process_is_faster)
    folder = open_or_build(SMALL, tmp_path, log.append)
    assert folder.stat().st_ino == winner[0]
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_locate_uses_the_cache_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTTRIM_CACHE", str(tmp_path / "cache"))
    assert locate(SMALL, lambda line: None).parent == tmp_path / "cache"


def test_a_home_that_nobody_has_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = "~nobody-of-this-name/scenes"
    with pytest.raises(UserError, match=r"-name/scenes: the home folder ~nobody.* is not known"):
        build(Path(nowhere), Options())
    monkeypatch.setenv("SMARTTRIM_CACHE", nowhere)
    with pytest.raises(UserError, match="is not known"):
        open_or_build(Options())


def test_build_writes_where_it_is_told(tmp_path: Path, log: list[str]) -> None:
    counts = build(tmp_path / "out", SMALL, log.append)
    assert counts["train"] == {"images": 6, "questions": 24}
    assert counts["test"] == {"images": 4, "questions": 16}
    assert len(questions(tmp_path / "out", "train")) == 24
    log.clear()
    assert build(tmp_path / "out", SMALL, log.append) == counts
    assert "already holds" in log[0]
    smaller = SMALL.model_copy(update={"questions_per_image": 2})
    assert build(tmp_path / "out", smaller, log.append)["train"]["questions"] == 12


def test_build_refuses_folders_with_other_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(UserError, match="cat.jpg"):
        build(tmp_path / "photos", SMALL, lambda line: None)
    build(tmp_path / "out", SMALL, lambda line: None)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="notes.txt"):
        build(tmp_path / "out", SMALL.model_copy(update={"seed": 1}), lambda line: None)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    (tmp_path / "out" / "notes.txt").rename(tmp_path / "out" / "train" / "notes.txt")
    with pytest.raises(UserError, match=r"train.notes.txt"):
        build(tmp_path / "out", SMALL.model_copy(update={"seed": 1}), lambda line: None)
    (tmp_path / "out" / "train" / "notes.txt").rename(tmp_path / "out" / "train" / "cat.png")
    with pytest.raises(UserError, match="1 images in train"):
        build(tmp_path / "out", SMALL.model_copy(update={"seed": 1}), lambda line: None)
    assert (tmp_path / "out" / "train" / "cat.png").read_text() == "mine"
    with pytest.raises(UserError, match="is a file"):
        build(tmp_path / "photos" / "cat.jpg", SMALL, lambda line: None)
    monkeypatch.chdir(tmp_path / "photos")
    with pytest.raises(UserError, match="holds other files|working folder"):
        build(Path("."), SMALL, lambda line: None)
