"""What is said of a summary or a log that somebody has edited, or that was cut short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from smarttrim_cli.cli.render import comparison
from smarttrim_cli.engine.compare import compare
from smarttrim_cli.engine.runs import Run
from smarttrim_cli.engine.simulate import measured_kept
from smarttrim_cli.engine.summary import summary
from smarttrim_cli.errors import UserError

SIDES = {"full": {"accuracy": 0.9}, "trimmed": {"accuracy": 0.8}}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "recipe.yaml").write_text("seed: 1\n", encoding="utf-8")
    return Run(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "not a summary"),
        ('"x"', "not a summary"),
        ("null", "not a summary"),
        ("5", "not a summary"),
        ('{"full": {"acc', "not valid JSON"),
        ('{"full": %s}' % ("1" * 5000), "too many digits"),
        ('{"full": %s}' % ("[" * 5000), "nested too deeply"),
        ('{"full": %s}' % ('{"a": ' * 300 + "1" + "}" * 300), "nested too deeply"),
    ],
)
def test_a_file_that_is_no_summary(run: Run, text: str, message: str) -> None:
    run.summary_file.write_text(text, encoding="utf-8")
    for read in (lambda: summary(str(run.path)), run.summary, lambda: measured_kept(str(run.path))):
        with pytest.raises(UserError, match=message) as caught:
            read()
        assert caught.value.where == str(run.summary_file)
    with pytest.raises(UserError):
        compare([str(run.path)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('"full": [1]', "full is [1], not an object"),
        ('"full": "x"', 'full is "x", not an object'),
        ('"full": NaN', "full is NaN, not a number"),
        ('"full": {"accuracy": NaN}', "full.accuracy is NaN, not a number"),
        ('"full": {"accuracy": 1%s}' % ("0" * 400), "full.accuracy is 1000"),
        ('"full": {"other": {"a": [1e999]}}', "full.other.a is Infinity, not a number"),
        ('"trimmed": {"accuracy": 0.5, "gmacs": -1}', "trimmed.gmacs is -1, not a number of at least 0"),
        ('"trimmed": {"accuracy": 0.5, "kept": [1]}', "trimmed.kept is [1], not an object of numbers"),
        ('"eval": [1]', "eval is [1], not an object"),
        ('"baselines": [1]', "baselines is [1], not an object"),
        ('"baselines": {"random": 1}', "baselines.random is 1, not an object"),
        ('"difference": [1]', "difference is [1], not an object"),
        ('"metric": ["a"]', 'metric is ["a"], not a text'),
        ('"metric": {}', "metric is {}, not a text"),
        ('"at_full_size": 5', "at_full_size is 5, not an object"),
        ('"at_full_size": {"full": 5}', "at_full_size.full is 5, not an object"),
        ('"breakdown": {"full": 5}', "breakdown.full is 5, not an object of numbers"),
        ('"layers": [5]', "layers is [5], not a list of objects"),
    ],
)
def test_values_of_another_kind_are_refused_by_key(run: Run, content: str, message: str) -> None:
    run.summary_file.write_text(json.dumps(SIDES)[:-1] + f", {content}}}", encoding="utf-8")
    for read in (lambda: summary(str(run.path)), lambda: compare([str(run.path)])):
        with pytest.raises(UserError) as caught:
            read()
        assert caught.value.where == str(run.summary_file) and caught.value.message.startswith(message)


@pytest.mark.parametrize(
    "content",
    [
        {"baselines": {"random": {}}},
        {"baselines": {"random": None}},
        {"difference": {"mean": 1}},
        {"difference": {"mean": None, "se": 1}},
        {"at_full_size": {}},
        {"at_full_size": {"recipe": "r"}},
        {"breakdown": {}},
        {"breakdown": {"trimmed": {"rest": None}}},
        {"layers": [{}]},
        {"macs_counts": {"trimmed": {"a": 1}}},
        {"full": {"accuracy": 0.9, "accuracy_by_type": {"a": {"se": 1}}}},
        {"full": {"accuracy": 0.9, "accuracy_by_type": [1]}, "trimmed": {"accuracy_by_type": {"a": 1}}},
        {"full": None, "metric": None},
    ],
)
def test_what_is_lacking_is_left_out(run: Run, content: dict[str, Any]) -> None:
    run.summary_file.write_text(json.dumps({**SIDES, **content}), encoding="utf-8-sig")
    assert "trimmed" in comparison(summary(str(run.path)))
    if "accuracy" in {**SIDES, **content}["trimmed"]:
        assert compare([str(run.path)])["groups"]


def test_lines_of_the_log_that_no_run_has_written(run: Run) -> None:
    good = [
        {"step": 1, "loss": 1.0, "grounding": None},
        {"step": 0, "phase": "warmup", "warmup_step": 2, "loss": 0.5},
        {"step": 2, "eval": {"accuracy": 0.5, "meteor_skipped": "skipped: no Java"}, "warning": "collapsed"},
    ]
    bad = [
        "[" * 100_000,
        '{"step": %s}' % ("1" * 400),
        '{"step": %s}' % ("1" * 5000),
        '{"step": -1}',
        '{"step": true}',
        '{"step": 3, "warmup_step": "x"}',
        '{"step": 3, "loss": "x"}',
        '{"step": 3, "loss": [1]}',
        '{"step": 3, "loss": 1e999}',
        '{"step": 3, "eval": 1}',
    ]
    lines = [json.dumps(good[0]), *bad, *map(json.dumps, good[1:])]
    run.metrics.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert list(run.history()) == good
    run.rewind(2, 2)
    assert list(run.history()) == good and len(run.metrics.read_text(encoding="utf-8").splitlines()) == 3
