"""The plug-ins printed in docs/adding_a_*.md work: together they are trained, evaluated and exported."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import smarttrim_cli
from smarttrim_cli.engine.evaluate import evaluate
from smarttrim_cli.engine.export import export
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.engine.profile import profile
from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.cost import instance_macs
from smarttrim_cli.recipe import load_recipe
from tests.tiny import BACKBONES

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {"linear_token": "trimmer", "two_tower": "backbone", "labelled_pairs": "task"}
TRAINING = """
output_dir: run
pruning:
  target_speedup: 1.3
  token_trimmer: {name: my_package.linear_token, start_scale: 0.1}
train: {max_steps: 2, per_device_train_batch_size: 4, num_threads: 1}
"""


def blocks(page: str, language: str) -> list[str]:
    """Code blocks of a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The printed files as ``my_package``, the printed recipe sections, and a few pairs as data."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "my_package").mkdir()
    recipe = TRAINING
    for name, kind in PAGES.items():
        page = f"adding_a_{kind}.md"
        files = [block for block in blocks(page, "python") if block.startswith('"""')]
        assert len(files) == 1
        (folder / "my_package" / f"{name}.py").write_text(files[0], encoding="utf-8")
        recipe += "".join(blocks(page, "yaml"))
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    write_pairs(folder / "pairs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        yield folder
        for module in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
            del sys.modules[module]


def write_pairs(folder: Path) -> None:
    """Pictures of one colour, and texts that name it or the other one."""
    folder.mkdir()
    number = 0
    for split, count in (("train", 12), ("val", 8), ("test", 10)):
        lines = []
        for _ in range(count):
            number += 1
            color, word = ("red", "blue")[number % 2], ("red", "blue")[number // 2 % 2]
            Image.new("RGB", (20, 16), color).save(folder / f"{number}.png")
            pair = {"id": number, "image": f"{number}.png", "text": f"this is {word}"}
            lines.append(json.dumps({**pair, "label": "true" if color == word else "false"}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    threads = torch.get_num_threads()
    finetune(load_recipe(folder / "recipe.yaml"))
    torch.set_num_threads(threads)
    return folder / "run"


def test_evaluate_and_rescore(run: Path, folder: Path) -> None:
    file = folder / "predictions.jsonl"
    result = evaluate(str(run), predictions_out=file)
    assert result["count"] == 10 and 0 <= result["trimmed"]["accuracy"] <= 1
    again = evaluate(str(run), from_predictions=file)
    assert again["trimmed"]["accuracy"] == result["trimmed"]["accuracy"]


@pytest.mark.parametrize("backbone", ["meter", "blip"])
def test_the_task_works_with_shipped_backbones(folder: Path, backbone: str) -> None:
    """They take it for their form ``snli_ve``, with as many labels as it has."""
    options = {**BACKBONES[backbone]["plain"], "tokenizer": "train"}
    recipe = {
        "output_dir": f"with_{backbone}",
        "backbone": {"name": backbone, **options},
        "task": yaml.safe_load(blocks("adding_a_task.md", "yaml")[0])["task"],
        "pruning": None,
        "train": {"max_steps": 1, "per_device_train_batch_size": 4, "num_threads": torch.get_num_threads()},
    }
    (folder / f"{backbone}.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    result = finetune(load_recipe(folder / f"{backbone}.yaml"))
    assert result["eval"]["count"] == 8 and 0 <= result["eval"]["accuracy"] <= 1


def test_torchprofile_counts_what_the_architecture_says(run: Path) -> None:
    result = profile(str(run), single_instance=True, num_instances=3)
    for side in (result["full"], result["trimmed"]):
        assert side["gmacs"] == pytest.approx(side["gmacs_cost_model"], rel=0.005)


def test_exported_model_answers_and_removal_is_masking(run: Path, folder: Path) -> None:
    export(str(run), out=folder / "exported")
    model = smarttrim_cli.load(folder / "exported")
    prediction = model.predict("pairs/1.png", "this is red")
    assert prediction.answer in ("true", "false") and prediction.gmacs > 0
    inputs = model.model.backbone.example_inputs(5, batch=3)
    with torch.no_grad():
        masked, packed, full = (model.model(inputs, mode) for mode in ("masked", "packed", "full"))
    torch.testing.assert_close(packed.output, masked.output, rtol=0.0, atol=1e-5)
    assert full.output.shape == (3, 2)
    trimmed_B, full_B = instance_macs(model.model, packed.decisions)
    assert (trimmed_B != full_B).all()


@pytest.mark.parametrize(
    ("pair", "message"),
    [({"label": "maybe"}, "label 'maybe' is none of task.labels"), ({"id": "one"}, "cannot read the pairs")],
)
def test_bad_lines_are_said(run: Path, folder: Path, pair: dict[str, str], message: str) -> None:
    line = {"id": 1, "image": "1.png", "text": "this is red", "label": "true", **pair}
    (folder / "pairs" / "odd.jsonl").write_text(json.dumps(line), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        evaluate(str(run), split="odd")
