"""Training data that were moved are the same; whatever else is changed is seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from smarttrim_cli.data import hf_datasets, jsonl
from smarttrim_cli.data.samples import VqaSample
from smarttrim_cli.engine.fingerprint import fingerprint
from tests.tasks.own_data import write_lines, write_pictures

SAMPLE = VqaSample(1, (Path("here/a.png"),), "what is it?", 7, ("cat", "dog"))
OTHER = replace(SAMPLE, id=2)


def test_only_names_of_paths_count() -> None:
    found = fingerprint([SAMPLE, OTHER])
    assert found.startswith("2 ") and found == fingerprint([replace(SAMPLE, images=(Path("a.png"),)), OTHER])
    changed = [
        [OTHER, SAMPLE],
        [SAMPLE],
        [SAMPLE, OTHER, OTHER],
        [replace(SAMPLE, text="what is that?"), OTHER],
        [replace(SAMPLE, answers=("cat", "cow")), OTHER],
        [replace(SAMPLE, images=(Path("here/b.png"),)), OTHER],
    ]
    assert len({found, *map(fingerprint, changed)}) == 7


@pytest.mark.parametrize("data", [jsonl, hf_datasets], ids=lambda data: data.__name__.rpartition(".")[2])
def test_own_data_that_were_moved_are_the_same(data: Any, tmp_path: Path) -> None:
    """Questions without an image_id have the place of their image as one."""
    found = []
    for name in ("here", "there"):
        folder = tmp_path / name
        folder.mkdir()
        write_pictures(folder, ["red"])
        if data is jsonl:
            write_lines(folder, "train", [{"image": "red.png", "question": "what?", "answer": "red"}])
        else:
            pytest.importorskip("datasets")
            (folder / "metadata.csv").write_text("file_name,question,answer\nred.png,what?,red\n", "utf-8")
        options = data.Options(data_dir=str(folder))
        samples = data.read(options, "vqa", "train", labelled=True, log=lambda text: None)
        assert samples[0].image_id == str(samples[0].images[0]) and str(folder) in samples[0].image_id
        found.append(fingerprint(samples))
    assert found[0] == found[1]


def test_samples_of_a_plug_in_are_counted() -> None:
    assert fingerprint([object(), object()]).startswith("2 ")
    assert fingerprint([{"id": 1}]) != fingerprint([{"id": 2}])
