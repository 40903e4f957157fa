"""The model card of an exported folder: what it is and what was measured, from the run's summary only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import smarttrim_cli
from smarttrim_cli.engine.artifact import TRIMMERS, WEIGHTS, Bundle, parameter_count
from smarttrim_cli.engine.runs import Run
from smarttrim_cli.pruning.sites import TOKEN, Site

_CALLS = {
    "vqa": 'predict("image.png", "what color is the circle?")',
    "nlvr2": 'predict(["left.png", "right.png"], "both images show a dog")',
    "snli_ve": 'predict("image.png", "a dog is asleep")',
    "retrieval": 'predict("image.png", "a dog on a beach")',
    "captioning": 'predict("image.png")',
}
"""How a model of each form is asked."""
_CALL = 'predict("image.png", "...")'


def call_of(form: str) -> str:
    """How a model of a form is asked, as Python."""
    return _CALLS.get(form, _CALL)


def model_card(
    name: str, bundle: Bundle, run: Run, official: str | None = None, changed: Sequence[str] = ()
) -> str:
    """Markdown text. Numbers that were not measured are absent, never guessed.

    Args:
        name: Of the folder.
        bundle: The model.
        run: Where it was trained.
        official: Name of the file with the backbone in its official layout, if there is one.
        changed: Keys of the task that are others here than in the run, which was measured.
    """
    config, trimmed = bundle.config, bool(bundle.model.sites)
    parts = {"backbone": bundle.model.backbone, **({"trimmers": bundle.model.trimmers} if trimmed else {})}
    parameters = (f"{parameter_count(part):,} {title}" for title, part in parts.items())
    how = f"trimmed by {' and '.join(_trimmers(bundle))}" if trimmed else "fine-tuned and not trimmed"
    lines = [
        f"# {name}",
        "",
        f"A {config['backbone']['name'].upper()} model for {config['task']['name']}, {how}.",
        "",
        f"It needs {_needed(config)}.",
        "",
        "```python",
        "import smarttrim_cli",
        f'model = smarttrim_cli.load("{name}")',
        f"print(model.{call_of(config['form']['name'])}.answer)",
        "```",
        "",
        f"- Parameters: {', '.join(parameters)}",
        f"- Trimmed: {', '.join(bundle.model.groups) or 'nothing'}",
        *([f"- Decision threshold: {float(bundle.model.threshold):+.4f}"] if trimmed else []),
        f"- Weights: `{WEIGHTS}` under the host's own names"
        + (f", `{TRIMMERS}` what was added" if trimmed else ""),
        *_official(official, trimmed),
        "- How it was trained: `recipe.yaml`",
        "",
        "## Measured",
        "",
        *_measured(run.summary(), trimmed, changed),
        "",
    ]
    return "\n".join(lines)


def _trimmers(bundle: Bundle) -> list[str]:
    """Names of the trimmers that the model has, each with what it scores."""
    scored = {"token" if Site.parse(name).kind == TOKEN else "head" for name in bundle.model.sites}
    sections = bundle.config["trimmers"]
    return [f"`{sections[kind]['name']}` ({kind}s)" for kind in ("token", "head") if kind in scored]


def _needed(config: Mapping[str, Any]) -> str:
    """What has to be installed: the package, and modules of plug-ins outside it."""
    data, trimmers = config["task"].get("data"), config["trimmers"]
    sections = (config["backbone"], config["task"], data, trimmers.get("token"), trimmers.get("head"))
    names = [str(section.get("name", "")) for section in sections if isinstance(section, Mapping)]
    outside = [name.split(":")[0] for name in names if "." in name or ":" in name]
    modules = "".join(f", and the module `{module}` of its own" for module in dict.fromkeys(outside))
    return (
        f"the package smarttrim-cli {smarttrim_cli.__version__} (`pip install .` in its repository){modules}"
    )


def _official(file: str | None, trimmed: bool) -> list[str]:
    if file is None:
        return []
    line = f"- For the official code: `{file}`, the same weights of the backbone under the official names"
    if trimmed:
        line += f". It runs untrimmed there: that file holds no trimmers, they are in `{TRIMMERS}`"
    return [line]


def _measured(summary: dict[str, Any], trimmed: bool, changed: Sequence[str]) -> list[str]:
    sides = {name: summary.get(name) or {} for name in (("full", "trimmed") if trimmed else ("full",))}
    if not any(sides.values()):
        return ["Nothing yet: run `smarttrim evaluate` and `smarttrim profile` before exporting."]
    rows = [f"| quantity | {' | '.join(sides)} |", "|---" * (1 + len(sides)) + "|"]
    metric = summary.get("metric") or "accuracy"
    quantities = {
        metric: metric.replace("_", " "),
        "gmacs": "GMACs per instance",
        "gmacs_as_published": "GMACs per instance, counted as published",
    }
    for key, label in quantities.items():
        rows += _row(label, [side.get(key) for side in sides.values()])
    profile = summary.get("profile") or {}
    where, batch = profile.get("environment") or {}, profile.get("batch_size", 1)
    device = f"{where.get('device', '?')}, {where.get('threads', '?')} threads"
    label = "latency p50, ms" if batch == 1 else f"latency p50 of a batch of {batch}, ms"
    latency = _row(f"{label} ({device})", [_median(side.get("latency_ms")) for side in sides.values()])
    if "split" in summary:
        rest = f" (latency: {profile.get('instances')})" if latency else ""
        said = f"Split `{summary['split']}`, {summary.get('count')} instances{rest}"
    else:
        said = f"{profile.get('instances')} instances"
    removed = ", tokens and heads really removed" if trimmed else ""
    other = [f"Measured with other settings of the task: {', '.join(changed)}."] if changed else []
    return [*rows, *latency, "", f"{said}{removed}.", *other]


def _row(label: str, values: Sequence[float | None]) -> list[str]:
    """A line of the table; none where nothing was measured."""
    if all(value is None for value in values):
        return []
    return [f"| {label} | {' | '.join(map(_number, values))} |"]


def _median(latency: Any) -> float | None:
    return latency.get("p50") if isinstance(latency, dict) else None


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"
