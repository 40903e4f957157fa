"""The model card of an exported folder: what it is and what was measured, from the run's summary only."""

from __future__ import annotations

from typing import Any

from smarttrim_cli.engine.artifact import Bundle, parameter_count
from smarttrim_cli.engine.runs import Run

_CALLS = {
    "vqa": 'predict("image.png", "what color is the circle?")',
    "nlvr2": 'predict(["left.png", "right.png"], "both images show a dog")',
    "snli_ve": 'predict("image.png", "a dog is asleep")',
    "retrieval": 'predict("image.png", "a dog on a beach")',
    "captioning": 'predict("image.png")',
}
"""How a model of each form is asked."""
_CALL = 'predict("image.png", "...")'


def model_card(name: str, bundle: Bundle, run: Run, official: str | None = None) -> str:
    """Markdown text. Numbers that were not measured are absent, never guessed.

    Args:
        name: Of the folder.
        bundle: The model.
        run: Where it was trained.
        official: Name of the file with the backbone in its official layout, if there is one.
    """
    config, summary = bundle.config, run.summary()
    lines = [
        f"# {name}",
        "",
        f"A {config['backbone']['name'].upper()} model for {config['task']['name']}, trimmed with SmartTrim.",
        "",
        "```python",
        "import smarttrim_cli",
        f'model = smarttrim_cli.load("{name}")',
        f"print(model.{_CALLS.get(config['form']['name'], _CALL)}.answer)",
        "```",
        "",
        f"- Parameters: {parameter_count(bundle.model.backbone):,} backbone, "
        f"{parameter_count(bundle.model.trimmers):,} trimmers",
        f"- Trimmed: {', '.join(bundle.model.groups) or 'nothing'}",
        f"- Decision threshold: {float(bundle.model.threshold):+.4f}",
        "- Weights: `model.safetensors` under the host's own names, `trimmers.safetensors` what was added",
        *_official(official),
        "- How it was trained: `recipe.yaml`",
        "",
        "## Measured",
        "",
        *_measured(summary),
        "",
    ]
    return "\n".join(lines)


def _official(file: str | None) -> list[str]:
    if file is None:
        return []
    return [
        f"- For the official code: `{file}`, the same weights of the backbone under the official names. "
        "It runs untrimmed there: that file holds no trimmers, they are in `trimmers.safetensors`"
    ]


def _measured(summary: dict[str, Any]) -> list[str]:
    full, trimmed = summary.get("full") or {}, summary.get("trimmed") or {}
    if not trimmed and not full:
        return ["Nothing yet: run `smarttrim evaluate` and `smarttrim profile` before exporting."]
    rows = ["| quantity | full | trimmed |", "|---|---|---|"]
    metric = summary.get("metric") or "accuracy"
    quantities = {
        metric: metric.replace("_", " "),
        "gmacs": "GMACs per instance",
        "gmacs_as_published": "GMACs per instance, counted as published",
    }
    for key, label in quantities.items():
        if key in full or key in trimmed:
            rows.append(f"| {label} | {_number(full.get(key))} | {_number(trimmed.get(key))} |")
    latency = [_median(side.get("latency_ms")) for side in (full, trimmed)]
    if any(value is not None for value in latency):
        where = (summary.get("profile") or {}).get("environment") or {}
        device = f"{where.get('device', '?')}, {where.get('threads', '?')} threads"
        rows.append(f"| latency p50, ms ({device}) | {_number(latency[0])} | {_number(latency[1])} |")
    if "split" in summary:
        rows += [
            "",
            f"Split `{summary['split']}`, {summary.get('count')} instances, tokens and heads really removed.",
        ]
    return rows


def _median(latency: Any) -> float | None:
    return latency.get("p50") if isinstance(latency, dict) else None


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"
