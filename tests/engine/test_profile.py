from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from smarttrim_cli.engine.profile import profile
from smarttrim_cli.engine.runs import Run
from smarttrim_cli.errors import UserError
from tests.engine.tiny_run import recipe_file, tree

PARTS = {"text_encoder", "vision_encoder", "cross_modal", "head"}


def assert_complete(report: dict[str, Any], single: bool) -> None:
    for side in ("full", "trimmed"):
        column = report[side]
        assert 0 < column["latency_ms"]["p50"] <= column["latency_ms"]["p95"]
        assert column["peak_memory_mb"] > 0 and column["parameters"] > 0
        assert sum(column["gmacs_by_part"].values()) == pytest.approx(column["gmacs"], rel=5e-3)
        if single:
            assert column["gmacs_from"] == "torchprofile"
            assert column["gmacs_cost_model"] == pytest.approx(column["gmacs"], rel=5e-3)
    assert set(report["full"]["gmacs_by_part"]) == PARTS
    assert set(report["trimmed"]["gmacs_by_part"]) == PARTS | {"trimmers"}
    assert report["trimmed"]["parameters"] > report["full"]["parameters"]
    speedup = report["speedup"]
    assert speedup["macs"] == pytest.approx(report["full"]["gmacs"] / report["trimmed"]["gmacs"])
    assert speedup["realised"] == pytest.approx(speedup["latency"] / speedup["macs"])
    assert {"device", "threads", "torch"} <= set(report["environment"])


def test_single_instances_of_a_run(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    report = profile(str(tmp_path / "run"), single_instance=True, num_instances=4, device="cpu")
    assert_complete(report, single=True)
    assert (report["instances"], report["batch_size"]) == (4, 1)
    assert report["simulated_decisions"] is False
    assert report["distribution"]["macs_reduction"]["p5"] <= report["distribution"]["macs_reduction"]["p95"]
    merged = Run(tmp_path / "run").summary()
    assert merged["full"]["latency_ms"] == report["full"]["latency_ms"]
    assert merged["speedup"]["macs"] == report["speedup"]["macs"]
    assert merged["profile"]["environment"] == report["environment"]
    assert "calibration" in merged


def test_batches_of_a_run_do_not_touch_its_summary(trained: Path) -> None:
    before = tree(trained)
    report = profile(str(trained), num_instances=6, batch_size=3, device="cpu")
    assert_complete(report, single=False)
    assert report["full"]["gmacs_from"] == "cost model"
    assert tree(trained) == before


def test_random_weights_at_the_recipes_speedup(tmp_path: Path) -> None:
    report = profile(
        str(recipe_file(tmp_path)), random_weights=True, num_instances=256, batch_size=64, device="cpu"
    )
    assert_complete(report, single=False)
    assert report["simulated_decisions"] is True
    assert report["speedup"]["macs"] == pytest.approx(1.5, rel=0.02)


def test_random_weights_at_the_sparsity_of_a_run(trained: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(trained, run.path)
    with pytest.raises(UserError, match="no kept fractions there") as caught:
        profile(str(recipe_file(tmp_path)), random_weights=True, sparsity_from=str(run.path))
    assert f"smarttrim evaluate {run.path}" in str(caught.value)
    run.merge_summary({"trimmed": {"kept": {"token.vision": 0.25, "head.text": 0.5, "token.text": 1.0}}})
    report = profile(
        str(recipe_file(tmp_path)),
        random_weights=True,
        sparsity_from=str(run.path),
        num_instances=32,
        device="cpu",
    )
    assert set(report["trimmed"]["kept"]) == {"token.vision", "head.text"}
    assert report["trimmed"]["kept"]["token.vision"] == pytest.approx(0.25, abs=0.1)
    assert report["trimmed"]["kept"]["head.text"] == pytest.approx(0.5, abs=0.15)


def test_random_weights_have_the_sizes_of_the_checkpoint(trained: Path) -> None:
    """The backbone's defaults (METER-base) used to be measured instead."""
    from smarttrim_cli.engine.artifact import load_model, parameter_count

    report = profile(
        str(trained),
        overrides=[f"backbone={{name: meter, checkpoint: '{trained}'}}"],
        random_weights=True,
        num_instances=1,
        batch_size=1,
        device="cpu",
    )
    assert report["full"]["parameters"] == parameter_count(load_model(trained / "model").model.backbone)


def test_recipe_without_a_run_is_measured_with_random_decisions(tmp_path: Path) -> None:
    recipe = str(recipe_file(tmp_path))
    overrides = [f"output_dir={tmp_path / 'nothing'}"]
    report = profile(recipe, overrides=overrides, num_instances=4, single_instance=True, device="cpu")
    assert report["simulated_decisions"] is True
    assert_complete(report, single=True)
    assert not (tmp_path / "nothing").exists()


def test_mistakes(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="device 'gpu9' is not available"):
        profile(str(trained), device="gpu9")
    with pytest.raises(UserError, match="exclude each other"):
        profile(str(trained), single_instance=True, batch_size=4)
    with pytest.raises(UserError, match="not a run directory"):
        profile(str(tmp_path))
    with pytest.raises(UserError, match="not a run with a summary"):
        profile(str(trained), random_weights=True, sparsity_from=str(tmp_path))
