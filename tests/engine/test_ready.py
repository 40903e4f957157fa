"""Models for much inference have prepared kernels on a CPU, and answer as before but for rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import smarttrim_cli
from smarttrim_cli import registry
from smarttrim_cli.api import TrimmedVlm
from smarttrim_cli.data.images import Preprocess
from smarttrim_cli.data.processor import Processor, train_word_tokenizer
from smarttrim_cli.engine import baselines, validation
from smarttrim_cli.engine import evaluate as evaluation
from smarttrim_cli.engine.artifact import Bundle, build_backbone, build_task
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.engine.inference import make_ready, predict
from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.prepared import PreparedLinear, usable
from tests.engine.tiny_run import tiny_recipe
from tests.tasks.test_with_backbones import SCENES
from tests.tiny import BACKBONES, attach, enliven, paper_model, ragged_inputs

pytestmark = [pytest.mark.usefixtures("settings")]
CPU = torch.device("cpu")
QUESTION = "is there a red circle?"


def is_prepared(model: torch.nn.Module) -> bool:
    return any(isinstance(module, PreparedLinear) for module in model.modules())


def test_pictures_are_turned_as_files_are(trained: Path, tmp_path: Path) -> None:
    """As their EXIF data say."""
    pixels = torch.arange(24 * 16 * 3).remainder(251).byte().view(16, 24, 3).numpy()
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    model = smarttrim_cli.load(trained)
    by_file, by_picture = (
        model.predict(one, QUESTION) for one in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png"))
    )
    assert (by_file.answer, by_file.score) == (by_picture.answer, by_picture.score)
    with pytest.raises(UserError, match="too long and thin"):
        model.predict(Image.new("RGB", (3000, 1)), QUESTION)


@torch.no_grad()
def test_the_report_says_which_kernels() -> None:
    model = paper_model()
    assert make_ready(model, CPU, host_kernels=True) == "host"
    assert not model.prepared
    before = model(ragged_inputs(model.backbone), "full").output
    assert make_ready(model, CPU) == ("prepared" if usable(torch.zeros(1)) else "host")
    assert model.prepared
    torch.testing.assert_close(model(ragged_inputs(model.backbone), "full").output, before)


def test_a_loaded_model_is_ready(trained: Path, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    model = smarttrim_cli.load(trained)
    assert model.model.prepared
    ready = model.predict(tmp_path / "a.png", QUESTION)
    model.model.restore()
    assert not is_prepared(model.model)
    as_it_was = model.predict(tmp_path / "a.png", QUESTION)
    assert (ready.answer, ready.gmacs) == (as_it_was.answer, as_it_was.gmacs)
    assert ready.score == pytest.approx(as_it_was.score, abs=1e-5)


def test_full_costs_are_those_of_the_text_that_the_full_model_wrote() -> None:
    """Which may be longer or shorter than that of the trimmed model."""
    task: Any = build_task({"name": "captioning", "data": SCENES}, "blip", print)
    tokenizer = train_word_tokenizer(task.texts("train"))
    section = {"name": "blip", **BACKBONES["blip"]["plain"]}
    section = registry.load("backbones", "blip").fit_to_tokenizer(section, tokenizer)
    host = enliven(build_backbone(section, task.form)).eval()
    host.text_decoder.cls.predictions.bias.data[tokenizer.sep_token_id] += 4  # texts end, some late
    processor = Processor(tokenizer, Preprocess(size=32), 20)
    trimmed, untrimmed = (
        TrimmedVlm(Bundle(model, task, processor, {}))
        for model in (attach(host, "cross_modal", "global_head"), TrimmedModel(host, {}).eval())
    )
    noise = torch.randint(0, 256, (8, 32, 32, 3), generator=torch.Generator().manual_seed(0)).byte()
    images = [Image.fromarray(pixels.numpy()) for pixels in noise]
    differ = 0
    for image in images:
        whole, alone = trimmed.predict(image, full=True), untrimmed.predict(image)
        assert (whole.answer, whole.gmacs) == (alone.answer, alone.gmacs)
        assert whole.full_gmacs == whole.gmacs
        differ += whole.gmacs != trimmed.predict(image).full_gmacs
    assert differ > 0


def test_evaluation_is_ready_and_training_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bool]] = []

    def noting(where: str) -> Any:
        def noted(bundle: Any, *args: Any, **settings: Any) -> Any:
            seen.append((where, bundle.model.prepared or is_prepared(bundle.model)))
            return predict(bundle, *args, **settings)

        return noted

    monkeypatch.setattr(validation, "predict", noting("training"))
    monkeypatch.setattr(evaluation, "predict", noting("evaluation"))
    monkeypatch.setattr(baselines, "predict", noting("evaluation"))
    finetune(tiny_recipe(tmp_path, "train.max_steps=4", "train.eval_steps=2"))
    evaluation.evaluate(str(tmp_path / "run"), max_instances=8, baselines=["random"])
    assert set(seen) == {("training", False), ("evaluation", True)}
    assert seen.count(("evaluation", True)) == 2  # the model and the baseline, which shares its backbone


def test_a_model_loaded_in_inference_mode_is_an_ordinary_one(trained: Path) -> None:
    """Torch would not count what is written to its weights, from which other things are made."""
    with torch.inference_mode():
        model = smarttrim_cli.load(trained).model
    assert not any(tensor.is_inference() for tensor in model.state_dict().values())
    inputs = ragged_inputs(model.backbone)
    model(inputs, "masked").output.sum().backward()
