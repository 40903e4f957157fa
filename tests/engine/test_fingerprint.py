"""Training data that were moved are the same; whatever else is changed is seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from smarttrim_cli.data.samples import VqaSample
from smarttrim_cli.engine.fingerprint import fingerprint

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


def test_samples_of_a_plug_in_are_counted() -> None:
    assert fingerprint([object(), object()]).startswith("2 ")
    assert fingerprint([{"id": 1}]) != fingerprint([{"id": 2}])
