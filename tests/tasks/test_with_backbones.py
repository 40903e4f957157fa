"""Every task with every backbone that has a form for it, on tiny scenes: loss, predictions, summary."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from smarttrim_cli import registry
from smarttrim_cli.data.images import Preprocess
from smarttrim_cli.data.processor import Processor, train_word_tokenizer
from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.objective import StatefulLoss
from tests.tiny import BACKBONES

SCENES = {
    "name": "scenes",
    "image_size": 32,
    "grid": 2,
    "cell_size": 16,
    "object_sizes": [9, 13],
    "max_objects": 4,
    "num_images": {"train": 12, "calibration": 2, "val": 2, "test": 2},
}
MORE: dict[str, dict[str, Any]] = {
    "vqa": {"min_answer_count": 1},
    "retrieval": {"num_false_texts": 3, "queue_size": 8, "two_stage": False},
}
PAIRS = [
    (backbone, form)
    for backbone in registry.names("backbones")
    for form in registry.load("backbones", backbone).FORMS
]


@pytest.mark.parametrize(("backbone", "form"), PAIRS)
def test_task_and_backbone_fit(backbone: str, form: str) -> None:
    plugin = registry.load("backbones", backbone)
    section = {"name": form, "data": SCENES, **MORE.get(form, {})}
    options = registry.options("tasks", section)
    task = registry.load("tasks", form).build(options, print, plugin.FORMS[form])
    task.prepare_labels(None)
    host = {"name": backbone, **next(iter(BACKBONES[backbone].values())), "tokenizer": "train"}
    sizes = registry.options("backbones", host)
    preprocess = Preprocess(sizes.image_size, plugin.PREPROCESS)
    processor = Processor(train_word_tokenizer(task.texts("train")), preprocess, sizes.max_text_length)
    torch.manual_seed(0)
    host = plugin.fit_to_tokenizer(host, processor.tokenizer)
    model = plugin.build(registry.options("backbones", host), task.form).eval()

    dataset = task.dataset("train", processor, training=True)
    batch = task.collate([dataset[index] for index in range(3)], processor, True)
    if isinstance(task.loss, StatefulLoss):
        task.loss.start(model)
        batch = task.loss.prepare(batch)
    output = model(**batch.inputs)
    loss, logits = task.loss(output, batch), task.logits(output, batch)
    loss.backward()
    assert loss.dim() == 0 and 0 < loss.item() < math.inf
    assert logits.dim() == 2 and logits.requires_grad

    dataset, records = task.dataset("test", processor), []
    with torch.no_grad():
        for index in range(0, len(dataset), 4):
            batch = task.collate([dataset[i] for i in range(index, min(index + 4, len(dataset)))], processor)
            records += task.predict(model(**batch.inputs), batch, processor)
    assert len(records) == len(dataset)
    records = task.finish(records)
    stored = json.loads(json.dumps(records))
    summary = task.summarize(records)
    assert task.metric in summary and f"{task.metric}_se" in summary and summary["count"] == len(records)
    assert task.summarize(task.rescore(stored, "test"))[task.metric] == pytest.approx(summary[task.metric])
    if form == "retrieval":
        with pytest.raises(UserError):
            task.submission(records)
    else:
        assert task.submission(records)


@pytest.mark.parametrize(("backbone", "form"), PAIRS)
def test_form_is_known_without_data(backbone: str, form: str) -> None:
    """Costs are predicted before any data are read."""
    options = registry.options("tasks", {"name": form, "data": {"name": "jsonl", "data_dir": "nowhere"}})
    style = registry.load("backbones", backbone).FORMS[form]
    task = registry.load("tasks", form).build(options, print, style)
    assert task.form.name == form == task.form_name
    assert (task.form.decoding is None) == (style != "generates")
