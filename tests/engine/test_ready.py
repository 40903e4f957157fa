"""Models for much inference have prepared kernels on a CPU, and answer as before but for rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import smarttrim_cli
from smarttrim_cli.engine import baselines, validation
from smarttrim_cli.engine import evaluate as evaluation
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.engine.inference import make_ready, predict
from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.prepared import PreparedLinear, usable
from tests.engine.tiny_run import tiny_recipe
from tests.tiny import paper_model, ragged_inputs

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
