from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from smarttrim_cli.cli import render, tables
from smarttrim_cli.cli.console import Console, format_fields
from smarttrim_cli.cli.tables import ratio


def test_a_recipe_beside_results_is_for_other_programs() -> None:
    assert "backbone" not in render.comparison({"recipe": {"backbone": {"name": "meter"}}, "count": 4})
    assert "paper.yaml" in render.comparison({"recipe": "paper.yaml"})


def test_comparison_has_full_beside_trimmed_and_breakdowns() -> None:
    text = render.comparison(
        {
            "full": {"accuracy": 0.98, "latency_ms": {"p50": 8.0}, "macs_by_part": {"vision": 12_000_000}},
            "trimmed": {"accuracy": 0.931, "latency_ms": {"p50": 4.0}, "macs_by_part": {"vision": 4_000_000}},
            "speedup": {"macs": 3.0},
            "device": "cpu",
            "pictures": [Path("a.png")],
        }
    )
    rows = [line.split() for line in text.splitlines()]
    assert rows[0] == ["quantity", "full", "trimmed", "ratio"]
    assert rows[2] == ["accuracy", "0.98", "0.931", "95.0%"]
    assert rows[3] == ["latency_ms.p50", "8", "4", "2.00x"]
    assert ["vision", "12,000,000", "4,000,000", "3.00x"] in rows
    assert ["macs", "3"] in rows and ["device:", "cpu"] in rows and ["a.png"] in rows
    assert text.isascii()


def test_a_score_of_next_to_nothing_has_no_ratio() -> None:
    """As the BLEU of texts that share no words, which is smoothed."""
    assert [ratio(*values, False) for values in ((5e-18, 0.1), (0.0, 0.1), (0.2, 0.1))] == [
        None,
        None,
        "50.0%",
    ]
    assert ratio(0.0004, 0.0002, True) == "2.00x"


def test_rows_of_the_same_columns_are_one_table() -> None:
    shares = {"vision.0": {"relevant": 0.9, "other": 0.5}, "vision.1": {"relevant": 0.8, "other": 0.25}}
    text = render.comparison({"relevance": shares})
    lines = [line.split() for line in text.splitlines() if line.strip()]
    assert lines[0] == ["relevance", "relevant", "other"]
    assert ["vision.1", "0.8", "0.25"] in lines or ["vision.1", "0.8000", "0.2500"] in lines


def test_columns_are_aligned() -> None:
    lines = tables.table(("name", "value"), [("a", 1), ("longer", None)]).splitlines()
    assert lines == ["name    value", "------  -----", "a           1", "longer      -"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (123456.7, "123,457"),
        (9999.4, "9999"),
        (-9999.7, "-10,000"),
        (1234567, "1,234,567"),
        (None, "-"),
        (float("nan"), "-"),
        (True, "yes"),
    ],
)
def test_values(value: object, text: str) -> None:
    assert tables.format_value(value) == text


def test_json_takes_numpy_paths_and_infinity() -> None:
    text = render.to_json({"a": np.float32(0.5), "b": [np.int64(3)], "c": Path("x"), "d": float("inf")})
    assert json.loads(text) == {"a": 0.5, "b": [3], "c": "x", "d": None}


def test_plain_progress_is_a_line_per_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().track(100, "train") as tracker:
        for step in range(1, 101):
            tracker.update(step, loss=1 / step)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 10
    assert lines[0].startswith("train 10/100  ") and lines[0].endswith("s left  loss=0.1")
    assert "\x1b" not in err and "\r" not in err


def test_quiet_shows_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with Console(quiet=True).track(1, "train") as tracker:
        tracker.update(1)
    assert capsys.readouterr().err == ""


def test_live_progress_on_a_terminal_nests_and_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    console = Console()
    with console.track(2, "train") as outer:
        outer.update(1, loss=0.5)
        with console.track(3, "evaluate") as inner:
            inner.update(3)
        console.message("[not markup]")
    assert console._progress is None


def test_live_progress_prints_texts_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    console = Console()
    with console.track(1, "a:b:[c] :100:"):
        console.message("x.jsonl:100: wrong [key]")
    said = capsys.readouterr().err
    assert "x.jsonl:100: wrong [key]" in said and "a:b:[c] :100:" in said


def test_fields() -> None:
    assert format_fields({"loss": 0.123456, "phase": "warm-up"}) == "loss=0.1235 phase=warm-up"
    kept = {"kept/token.text": 0.8, "target/token.text": 0.75}
    assert format_fields(kept) == "kept/token.text=0.8 (target 0.75)"


def test_a_profile_explains_itself() -> None:
    sides = {"full": {"trimmers": 0.0, "attention": 8.0}, "trimmed": {"trimmers": 1.0, "attention": 3.0}}
    layer = {
        "stream": "vision",
        "layer": 3,
        "tokens_in": 100.0,
        "tokens_kept": 61.5,
        "heads": {"self_head": {"kept": 8.25, "of": 12}, "cross_head": {"kept": 12.0, "of": 12}},
        "gmacs": {"full": 2.0, "trimmed": 0.5},
        "ms": {"full": 20.0, "trimmed": 7.0},
    }
    result = {
        "full": {"gmacs": 2.0},
        "trimmed": {"gmacs": 1.0},
        "explanation": "2.00x fewer MACs became 1.60x less time",
        "breakdown": sides,
        "layers": [layer],
        "macs_counts": {"full": {"cost_model": 2.0}, "trimmed": {"cost_model": 0.8}},
    }
    lines = render.comparison(result).splitlines()
    assert lines[4] == "2.00x fewer MACs became 1.60x less time"
    assert lines[2].split() == ["gmacs", "2", "1", "2.00x"]
    assert lines[8].split() == ["trimmers", "0", "1", "-", "25.0%"]
    assert lines[9].split() == ["attention", "8", "3", "2.67x", "75.0%"]
    assert lines[13].split() == ["vision.3", "100", "61.5", "8.25/12", "12/12", "2", "0.5", "20", "7"]
    assert lines[17].split() == ["cost_model", "2", "0.8", "2.50x"]
    assert len(lines) == 18


def test_times_of_batches_say_so() -> None:
    side = {"gmacs": 2.0, "latency_ms": {"p50": 8.0}}
    result = {
        **dict.fromkeys(("full", "trimmed"), side),
        "breakdown": {"full": {"attention": 8.0}, "trimmed": {"attention": 8.0}},
        "layers": [{"stream": "vision", "layer": 0}],
        "distribution": {"macs_reduction": {"p5": 1.0}, "trimmed_latency_ms": {"p5": 8.0}},
    }
    text = render.comparison({**result, "batch_size": 64})
    for name in ("latency_ms.p50", "milliseconds", "ms", "trimmed_latency_ms"):
        assert f"\n{name} per batch of 64 " in text or f"  {name} per batch of 64 full" in text
    assert "per batch" not in render.comparison({**result, "batch_size": 1})


def test_a_profile_of_a_model_without_trimmers() -> None:
    result = {"full": {"gmacs": 2.0}, "breakdown": {"full": {"attention": 8.0}}}
    assert render.comparison(result).splitlines()[-1].split() == ["attention", "8", "-", "-", "100.0%"]


def test_a_summary_has_the_explanation_at_full_size() -> None:
    sides = {"full": {"gmacs": 2.0}, "trimmed": {"gmacs": 1.0}}
    other = {**sides, "recipe": "r", "explanation": "1.9x less time", "breakdown": {"full": {"rest": 1.0}}}
    text = render.comparison({**sides, "at_full_size": other})
    assert text.splitlines()[-1] == "1.9x less time" and "rest" not in text
