"""Write README's results table from docs/results/quickstart.json.

``python docs/update_readme.py`` rewrites the table; with ``--check`` it exits with 1 if it is out of date.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def table(result: dict[str, Any]) -> str:
    """The table as Markdown, every number from the JSON."""
    full, trimmed, speedup = result["full"], result["trimmed"], result["speedup"]
    random = result["baselines"]["random"]
    base = result["at_full_size"]
    environment = result["profile"]["environment"]
    rows = [
        "| embedded scenes, small METER | full | SmartTrim | random trimming, same weights and MACs |",
        "|---|---|---|---|",
        f"| accuracy, {result['count']} held-out questions "
        f"| {_percent(full)} | {_percent(trimmed)} | {_percent(random)} |",
        f"| GMACs per instance, cost model, all of them | {full['gmacs']:.5f} | {trimmed['gmacs']:.5f} "
        f"({speedup['macs']:.2f}x fewer) | {random['gmacs']:.5f} |",
        f"| GMACs per instance, torchprofile, {result['profile']['instances']} of them "
        f"| {full['gmacs_torchprofile']:.5f} | {trimmed['gmacs_torchprofile']:.5f} "
        f"({speedup['macs_torchprofile']:.2f}x fewer) | |",
        f"| latency p50, one instance, ms | {_p50(full):.1f} | {_p50(trimmed):.1f} | |",
        "| **METER-base, 288x288, random weights, same sparsity, "
        f"{base['instances']} instances:** GMACs | {base['full']['gmacs']:.1f} | "
        f"{base['trimmed']['gmacs']:.1f} ({base['speedup']['macs']:.2f}x fewer) | |",
        f"| latency p50, one instance, ms | {_p50(base['full']):.0f} | "
        f"{_p50(base['trimmed']):.0f} ({base['speedup']['latency_p50']:.2f}x faster) | |",
    ]
    where = f"{environment['device_name']}, {environment['threads']} threads, torch {environment['torch']}"
    note = (
        '"Full" is the fine-tuned model with its trimmers off. '
        f"Printed by `make quickstart` ({where}), with "
        "settings chosen after trial runs ([docs/quickstart_model.md](docs/quickstart_model.md)); raw "
        "numbers in "
        "[docs/results/quickstart.json](docs/results/quickstart.json). A model this small gains no time from "
        "trimming: at width 64 the bookkeeping costs more than the arithmetic saved, so the latency of the "
        "full size stands beside it."
    )
    return "\n".join([*rows, "", note])


def _p50(side: dict[str, Any]) -> float:
    return float(side["latency_ms"]["p50"])


def _percent(side: dict[str, Any]) -> str:
    return f"{100 * side['accuracy']:.1f} % ± {100 * side['accuracy_se']:.1f}"


def updated(readme: str, result: dict[str, Any]) -> str:
    """README with the current table."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table(result)}\n{END}{after}"


def main() -> int:
    """Rewrite or check; returns the exit code."""
    path = ROOT / "README.md"
    result = json.loads((ROOT / "docs/results/quickstart.json").read_text(encoding="utf-8"))
    old = path.read_text(encoding="utf-8")
    new = updated(old, result)
    if "--check" in sys.argv:
        if new != old:
            print("README.md is out of date: python docs/update_readme.py")
        return int(new != old)
    path.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
