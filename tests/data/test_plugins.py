"""Every data plug-in has what tasks ask of it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from smarttrim_cli import registry
from smarttrim_cli.data.samples import CaptionedImage, EntailmentSample, StatementSample, VqaSample
from smarttrim_cli.data.splits import joins_splits
from smarttrim_cli.errors import UserError

FORMS = {"vqa", "nlvr2", "snli_ve", "retrieval", "captioning"}


@pytest.mark.parametrize("name", registry.names("data"))
def test_interface(name: str) -> None:
    plugin = registry.load("data", name)
    assert plugin.TASKS and set(plugin.TASKS) <= FORMS
    assert issubclass(plugin.Options, BaseModel) and plugin.Options.model_config["extra"] == "forbid"
    assert all(field.description for field in plugin.Options.model_fields.values())
    read, splits = (inspect.signature(function).parameters for function in (plugin.read, plugin.splits))
    assert list(read) == ["options", "task", "split", "labelled", "log"]
    assert read["labelled"].kind is read["log"].kind is inspect.Parameter.KEYWORD_ONLY
    assert list(splits) == ["options", "task"]
    with pytest.raises(ValidationError, match="nonsense"):
        plugin.Options.model_validate({"data_dir": "x", "nonsense": 1})


@pytest.mark.parametrize("kind", [VqaSample, StatementSample, EntailmentSample, CaptionedImage])
def test_samples_have_what_all_tasks_use(kind: type) -> None:
    assert {"id", "images", "text"} <= set(inspect.signature(kind).parameters)


def test_joining_passes_everything_on() -> None:
    calls: list[tuple[Any, ...]] = []

    @joins_splits
    def read(options: str, task: str, split: str, *, labelled: bool, log: Any = print) -> list[Any]:
        calls.append((options, task, split, labelled, log))
        return [CaptionedImage(id=split, images=())]

    samples = read("o", "captioning", "a+b + c", labelled=False, log=len)
    assert [sample.id for sample in samples] == ["a", "b", "c"]
    assert calls == [("o", "captioning", split, False, len) for split in "abc"]
    with pytest.raises(UserError, match=r"split a\+b\+a: two samples have the id a"):
        read("o", "captioning", "a+b+a", labelled=True)
