from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from smarttrim_cli.engine.breakdown import PARTS as PARTS_OF_WORK
from smarttrim_cli.engine.profile import _count, _measure, _of_one_size, profile
from smarttrim_cli.engine.profile_report import Measured, explanation, for_summary
from smarttrim_cli.engine.report import SilentReporter
from smarttrim_cli.engine.runs import Run
from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.cost import instance_macs
from smarttrim_cli.tasks.base import Batch
from tests import tiny
from tests.engine.tiny_run import Recorder, recipe_file, tree

PARTS = {"text_encoder", "vision_encoder", "cross_modal", "head"}


def assert_complete(report: dict[str, Any], single: bool) -> None:
    for side in ("full", "trimmed"):
        column = report[side]
        assert 0 < column["latency_ms"]["p50"] <= column["latency_ms"]["p95"]
        assert column["peak_memory_mib"] > 0 and column["parameters"] > 0
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
    assert "realised" not in merged["speedup"]
    assert merged["speedup"]["realised_torchprofile"] == report["speedup"]["realised"]
    for side in ("full", "trimmed"):
        assert merged["profile"]["gmacs_cost_model"][side] == report[side]["gmacs_cost_model"]
        assert "gmacs_cost_model" not in merged[side]
    assert report["distribution"]["trimmed_latency_ms"]["p50"] == report["trimmed"]["latency_ms"]["p50"]
    assert merged["profile"]["environment"] == report["environment"]
    assert "calibration" in merged


def test_a_summary_that_takes_no_results(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found before the work; one that is damaged meanwhile does not cost the results."""
    run = Run(tmp_path / "run")
    shutil.copytree(trained, run.path)

    def damage_and_measure(*arguments: Any) -> Any:
        run.summary_file.write_text("[1]", encoding="utf-8")
        return _measure(*arguments)

    monkeypatch.setattr("smarttrim_cli.engine.profile._measure", damage_and_measure)
    reporter = Recorder()
    report = profile(str(run.path), single_instance=True, num_instances=2, device="cpu", reporter=reporter)
    assert report["instances"] == 2
    assert reporter.warnings[-1].startswith(
        f"the results are not stored in {run.summary_file}: not a summary"
    )
    monkeypatch.setattr("smarttrim_cli.engine.profile._measure", lambda *_: pytest.fail("the model was run"))
    for options in ({"target": str(run.path)}, {"target": "quickstart", "sparsity_from": str(run.path)}):
        with pytest.raises(UserError, match="not a summary"):
            profile(**options, single_instance=True, num_instances=2, device="cpu")  # type: ignore[arg-type]


def test_batches_of_a_run_do_not_touch_its_summary(trained: Path) -> None:
    before = tree(trained)
    report = profile(str(trained), num_instances=6, batch_size=3, device="cpu")
    assert_complete(report, single=False)
    assert report["full"]["gmacs_from"] == "cost model"
    assert tree(trained) == before


def test_instances_that_fill_no_batch_are_said_to_be_left_out(trained: Path) -> None:
    reporter = Recorder()
    report = profile(str(trained), num_instances=8, batch_size=3, device="cpu", reporter=reporter)
    assert report["instances"] == 6
    assert "2 instances that fill no batch of 3 are left out" in reporter.messages


def test_batches_are_of_the_size_of_most() -> None:
    """A first batch that a broken image made smaller is the odd one."""
    reporter = Recorder()
    batches: Any = [range(size) for size in (7, 8, 8, 3)]
    assert [len(batch) for batch in _of_one_size(batches, reporter)] == [8, 8]
    assert reporter.messages == ["10 instances that fill no batch of 8 are left out"]


@pytest.mark.parametrize("kernels", ["prepared", "host"])
def test_weights_of_static_heads_are_no_activations(tmp_path: Path, kernels: str) -> None:
    static = ["pruning.head_trimmer={name: saliency_head}", "backbone.hidden_size=96"]
    report = profile(
        str(recipe_file(tmp_path)),
        overrides=static,
        random_weights=True,
        num_instances=2,
        single_instance=True,
        host_kernels=kernels == "host",
        device="cpu",
    )
    assert report["trimmed"]["peak_memory_mib"] < 1.1 * report["full"]["peak_memory_mib"]


def test_random_weights_at_the_recipes_speedup(tmp_path: Path) -> None:
    reporter = Recorder()
    sizes: dict[str, Any] = {"num_instances": 260, "batch_size": 64}
    report = profile(
        str(recipe_file(tmp_path)), random_weights=True, **sizes, device="cpu", reporter=reporter
    )
    assert_complete(report, single=False)
    assert report["instances"] == 256
    assert "4 instances that fill no batch of 64 are left out" in reporter.messages
    assert report["simulated_decisions"] is True
    assert report["speedup"]["macs"] == pytest.approx(1.5, rel=0.02)


def test_fewer_random_instances_than_fit_a_batch(tmp_path: Path) -> None:
    reporter = Recorder()
    report = profile(
        str(recipe_file(tmp_path)), random_weights=True, num_instances=3, device="cpu", reporter=reporter
    )
    assert (report["instances"], report["batch_size"]) == (3, 3)
    assert not any("left out" in text for text in reporter.messages)


def test_random_weights_at_the_sparsity_of_a_run(trained: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(trained, run.path)
    with pytest.raises(UserError, match="no kept fractions there") as caught:
        profile(str(recipe_file(tmp_path)), random_weights=True, sparsity_from=str(run.path))
    assert f"smarttrim evaluate {run.path}" in str(caught.value)
    run.merge_summary({"trimmed": {"kept": {"token.vision": 0.25, "head.text": 0.5, "token.text": 1.0}}})
    with pytest.raises(UserError, match="has decisions of its own"):
        profile(str(trained), single_instance=True, sparsity_from=str(run.path))
    assert "at_full_size" not in run.summary()
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


def test_what_a_run_drops_and_the_recipe_cannot_is_said(trained: Path, tmp_path: Path) -> None:
    run, reporter = Run(tmp_path / "run"), Recorder()
    shutil.copytree(trained, run.path)
    kept = {"token.vision": 0.25, "token.text": 1.0, "head.text": 0.5, "head.decoder": 0.5}
    run.merge_summary({"trimmed": {"kept": kept}})
    report = profile(
        str(recipe_file(tmp_path)),
        overrides=["pruning.head_trimmer=null"],
        random_weights=True,
        sparsity_from=str(run.path),
        num_instances=2,
        device="cpu",
        reporter=reporter,
    )
    assert set(report["trimmed"]["kept"]) == {"token.vision"}
    (said,) = reporter.warnings
    assert said.startswith("--sparsity-from: the model has no trimmers of head.text, head.decoder, which")


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
    with pytest.raises(UserError, match="device 'meta' is not available"):
        profile(str(trained), device="meta")
    with pytest.raises(UserError, match="device 'gpu9' is not available"):
        profile(str(trained), device="gpu9")
    with pytest.raises(UserError, match="exclude each other"):
        profile(str(trained), single_instance=True, batch_size=4)
    with pytest.raises(UserError, match="not a run directory"):
        profile(str(tmp_path))
    with pytest.raises(UserError, match="not a run with a summary"):
        profile(str(trained), random_weights=True, sparsity_from=str(tmp_path))


def test_a_report_explains_itself(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")  # whose summary gets the report
    report = profile(
        str(tmp_path / "run"), single_instance=True, num_instances=3, device="cpu", by_layer=True
    )
    breakdown = report["breakdown"]
    assert set(breakdown) == {"full", "trimmed"}
    assert set(breakdown["full"]) == set(breakdown["trimmed"]) == set(PARTS_OF_WORK)
    for side, parts in breakdown.items():  # generous: a pass under the stopwatch, on a machine that is busy
        assert 0.2 < sum(parts.values()) / report[side]["latency_ms"]["p50"] < 5
    assert report["explanation"].startswith(f"{report['speedup']['macs']:.2f}x fewer MACs became ")
    assert "trimmers take" in report["explanation"]
    assert report["environment"]["kernels"] == "prepared"


def test_three_ways_of_counting(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    report = profile(
        str(tmp_path / "run"), single_instance=True, num_instances=3, device="cpu", host_kernels=True
    )
    assert report["environment"]["kernels"] == "host"
    assert set(report["macs_counts"]) == {"full", "trimmed"}
    for side, counts in report["macs_counts"].items():
        assert counts["torchprofile"] == report[side]["gmacs"]
        assert counts["cost_model"] == report[side]["gmacs_cost_model"]
    full = report["macs_counts"]["full"]
    # norms, which the flop counter does not see, are a part of a model as narrow as this one
    assert 0.9 * full["torchprofile"] < full["flop_counter"] < full["torchprofile"]
    assert "macs_counts" not in profile(str(trained), num_instances=4, batch_size=2, device="cpu")


@pytest.mark.parametrize("backbone", ["meter", "blip"])
def test_padding_counts_in_neither_model(backbone: str) -> None:
    """Texts of an image are padded to the longest (retrieval); packed forwards skip that."""
    (variant,) = [v for v in tiny.one_per_form() if (v.backbone, v.form) == (backbone, "retrieval")]
    model = tiny.attach(variant.build(), "cross_modal", "global_head")
    inputs = tiny.ragged_inputs(model.backbone)
    assert not inputs["attention_mask"].all()
    ids = torch.arange(len(inputs["pixel_values"]))
    measured = {mode: Measured() for mode in ("full", "packed")}
    _count(model, [Batch(inputs, ids, {}, [])], measured, SilentReporter())
    trimmed_B, full_B = instance_macs(model, model(inputs, "packed", instance_ids=ids).decisions)
    assert measured["full"].macs == pytest.approx([float(full_B.sum())], rel=5e-3)
    assert measured["packed"].macs == pytest.approx([float(trimmed_B.sum())], rel=5e-3)


def test_layer_by_layer(trained: Path) -> None:
    report = profile(str(trained), num_instances=6, batch_size=3, device="cpu", by_layer=True)
    rows = {(row["stream"], row["layer"]): row for row in report["layers"]}
    assert set(rows) == {(stream, layer) for stream in ("text", "vision") for layer in range(3)}
    assert "layers" not in profile(str(trained), num_instances=2, batch_size=2, device="cpu")
    for (stream, layer), row in rows.items():
        assert row["tokens_kept"] <= row["tokens_in"]
        if layer:
            assert row["tokens_in"] == rows[stream, layer - 1]["tokens_kept"]
        assert set(row["heads"]) == ({"self_head", "cross_head"} if layer == 2 else {"self_head"})
        assert all(0 <= one["kept"] <= one["of"] == 4 for one in row["heads"].values())
        assert row["ms"]["full"] > 0 and row["ms"]["trimmed"] > 0
    assert rows["vision", 0]["tokens_in"] == (32 // 8) ** 2 + 1
    encoder = sum(row["gmacs"]["full"] for row in rows.values() if row["part"] == "text_encoder")
    embedding = 32 * rows["text", 0]["tokens_in"] / 1e9  # a norm of the embeddings
    assert encoder + embedding == pytest.approx(report["full"]["gmacs_by_part"]["text_encoder"])
    layers = sum(row["gmacs"]["trimmed"] for row in rows.values())
    parts = report["trimmed"]["gmacs_by_part"]
    assert parts["trimmers"] < layers < sum(parts.values())


def test_explanation() -> None:
    speedup = {"macs": 2.5, "latency": 2.0, "realised": 0.8}
    full = {
        "trimmers": 0.0,
        "gathers": 0.0,
        "attention": 30.0,
        "projections": 40.0,
        "mlps": 99.0,
        "rest": 1.0,
    }
    trimmed = {
        "trimmers": 5.0,
        "gathers": 2.0,
        "attention": 10.0,
        "projections": 20.0,
        "mlps": 61.0,
        "rest": 2.0,
    }
    said = "2.50x fewer MACs became 2.00x less time: 0.80 of what they promise; trimmers take 5.0%, "
    said += "gathers take 2.0%, attention 3.00x less, projections 2.00x less, MLPs 1.62x less, "
    said += "the rest 2.00x more"
    assert explanation(speedup, {"full": full, "trimmed": trimmed}) == said


def test_what_an_evaluation_counted_stays() -> None:
    side = {"gmacs": 2.0, "gmacs_as_published": 3.0, "kept": {}, "latency_ms": {"p50": 1.0}}
    report = {"full": side, "trimmed": side, "instances": 1}
    evaluated = {"split": "test", "full": {"gmacs": 1.0}, "trimmed": {"gmacs": 1.0}}
    assert set(for_summary(report, evaluated)["full"]) == {"latency_ms", "gmacs_torchprofile"}
    counted = {"split": "test", "full": {"gmacs": 1.0}}  # without trimmers, too
    assert set(for_summary({"full": side, "instances": 1}, counted)["full"]) == {
        "latency_ms",
        "gmacs_torchprofile",
    }
    untrimmed = for_summary({"full": side, "instances": 1}, {"split": "test", "full": {"accuracy": 1.0}})
    assert untrimmed["full"]["gmacs"] == 2.0


def test_a_model_without_trimmers(trained: Path, tmp_path: Path) -> None:
    overrides = ["pruning=null", f"output_dir={tmp_path / 'nothing'}"]
    recipe = str(recipe_file(tmp_path))
    report = profile(
        recipe, overrides=overrides, random_weights=True, num_instances=2, single_instance=True, by_layer=True
    )
    assert "trimmed" not in report and "explanation" not in report
    assert report["simulated_decisions"] is False  # there are none
    assert set(report["breakdown"]) == set(report["macs_counts"]) == {"full"}
    assert all(set(row["ms"]) == set(row["gmacs"]) == {"full"} for row in report["layers"])
