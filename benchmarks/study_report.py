"""Tables and pictures of the study, from its results: docs/results/study/README.md, and a table in README.md.

``python benchmarks/study_report.py`` rewrites what stands between the markers; what stands outside, such as
what was tried and failed, is written by hand and stays.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _study_figures as figures
import _study_tables as tables
from _study_cells import Cells, read_cells
from _study_claims import EXPLAINED, above_tables, claims_table, kept_table
from _study_latency import latency_table
from _study_pool import read_json
from _study_readme import write_readme
from _study_table import ROOT, as_overrides, read_methods, study_run

from smarttrim_cli.engine.files import write_text

RESULTS = ROOT / "docs/results/study"
BEGIN, END = "<!-- written by benchmarks/study_report.py -->", "<!-- end of what is written -->"
_NEW = f"""# The study: every method and ablation on one bench

`python benchmarks/study.py` makes the runs (`--help` has its options), `python benchmarks/study_report.py`
this page. Every run's result is a JSON file in this folder; `smarttrim compare` reads it too.

{BEGIN}
{END}

## What was tried and failed

Nothing is recorded yet.
"""
_BRIEF = """What was to be reached on METER VQA, what was measured, and whether it is met (*within error*: the
bar is at most one standard error away). *SmartTrim* is the paper's recipe, *ours* the same trimmers taught by
the full model's own saliency ([why](#what-was-tried-and-failed)). All claims follow below."""
_HOW = """± is one standard error over seeds and test instances together; of a single seed, over instances
alone, and then there is no p: other seeds may differ by far more. *retained* is the share of the score of
the best full model on these scenes. Differences are of the same instances and of the seeds that both have,
which are named where one of the two has more: there it is not the difference of the means in the table. MACs
are those of the packed forward, the trimmers' own included; *(off)* marks methods that are more than 3 %
from the ratio named. *crowded scenes* have more objects than any in training."""
_WRITTEN = """*fewer MACs* is against the full model writing texts as long as the trimmed one's, not its own:
what is saved or lost by shorter or longer captions is not in it."""
_TIMED = """The scenes' models are too small to get faster. *time* is what a full-size model with random
weights takes for a single instance at the same ratio and with the same kind of trimmers, as a share of the
full one: `benchmarks/latency.py` ([performance](../../performance.md)); scores are those of the small models.
Methods and ratios that were not timed are missing."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    write(parser.parse_args(arguments).results)


def write(folder: Path) -> None:
    """Rewrite the page and the pictures of a folder of results."""
    methods = read_methods()
    cells = read_cells(folder, methods["methods"])
    page = folder / "README.md"
    text = page.read_text(encoding="utf-8") if page.exists() else _NEW
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = [*_sections(cells, methods, folder), *_trials(folder, methods), *_failed(folder)]
    write_text(page, f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n{END}{after}")
    if folder.resolve() == RESULTS:
        write_readme(cells)


def _sections(cells: Cells, methods: dict[str, Any], folder: Path) -> list[str]:
    bases = {
        base: f"{facts['task'].replace('/', ' ').upper()}, {facts['density']} scenes"
        for base, facts in methods["bases"].items()
        if base in cells.bases
    }
    parents = {name: own["extends"] for name, own in methods["methods"].items() if "extends" in own}
    lines = ["## In brief", "", *_BRIEF.splitlines(), "", *kept_table(cells), "", *above_tables(cells), ""]
    lines += ["## What was to be reached", "", *EXPLAINED.splitlines(), "", *claims_table(cells), ""]
    lines += ["## Methods", "", *_HOW.splitlines(), ""]
    if figures.pareto(folder / "pareto.png", cells, bases):
        lines += ["![score against MACs](pareto.png)", ""]
    for base, title in bases.items():
        lines += _titled(f"### {title}", tables.main_table(cells, base))
        if methods["bases"][base]["task"].endswith("captioning"):
            lines += [*_WRITTEN.splitlines(), ""]
    lines += _latency(cells, bases, folder)
    for base, title in bases.items():
        found = _titled(f"## Heads: {title}", tables.heads_table(cells, base))
        if found and figures.heads(folder / f"heads_{base}.png", cells, base):
            found += [f"![heads kept](heads_{base}.png)", ""]
        lines += found
    for base, title in bases.items():
        lines += _titled(f"## Switches: {title}", tables.switches_table(cells, base, parents))
    for base, title in bases.items():
        lines += _relevance(cells, base, title, folder)
    for base, title in bases.items():
        lines += _titled(f"## Compute and difficulty: {title}", tables.difficulty_table(cells, base))
    return lines


def _latency(cells: Cells, bases: dict[str, str], folder: Path) -> list[str]:
    """Scores against time, where full-size models were timed at the same ratio."""
    found = [(title, latency_table(cells, base)) for base, title in bases.items()]
    lines = [line for title, table in found for line in _titled(f"### {title}, full-size model", table)]
    if not lines:
        return []
    if figures.latency(folder / "latency.png", cells, bases):
        lines += ["![score against time](latency.png)", ""]
    return ["## Score against time", "", *_TIMED.splitlines(), "", *lines]


def _relevance(cells: Cells, base: str, title: str, folder: Path) -> list[str]:
    """Patches kept at the ratio that most methods have."""
    ratios = [cell.at for cell in cells.of(base, ["method"]) if "relevance" in cell.first and cell.at]
    if not ratios:
        return []
    at = max(sorted(set(ratios)), key=ratios.count)
    lines = [
        f"## Patches kept: {title}, {at}x",
        "",
        "Relevant / of other objects / background, in %, by vision layer.",
        "",
    ]
    table = tables.relevance_table(cells, base, at)
    lines += [*table, ""]
    drawn = figures.relevance(folder / f"relevance_{base}.png", cells, base, at)
    methods = len(table) - 2
    if len(drawn) < methods:
        lines += [f"The picture shows {len(drawn)} of these {methods}: {'; '.join(drawn)}.", ""]
    return [*lines, f"![patches kept by layer](relevance_{base}.png)", ""]


def _titled(title: str, table: list[str]) -> list[str]:
    return [title, "", *table, ""] if table else []


def _trials(folder: Path, methods: dict[str, Any]) -> list[str]:
    """Runs that are no part of the study, but by which its settings were chosen."""
    found = [
        (read_json(path) or {}) | {"trial": path.stem} for path in sorted((folder / "trials").glob("*.json"))
    ]
    usual = {
        f"{one['method']} {one['base']}": _usual(methods, one["base"], one["method"])
        for one in found
        if one["method"] in methods["methods"]
    }
    return _titled("## Trials", tables.trials_table(found, usual))


def _usual(methods: dict[str, Any], base: str, method: str) -> dict[str, str]:
    """Overrides of a method as runs note them, without those that all have."""
    overrides = as_overrides(study_run(methods, base, method, 1).overrides)
    return {key: value for key, value in (text.split("=", 1) for text in overrides) if key != "seed"}


def _failed(folder: Path) -> list[str]:
    """Runs that failed, with what they said."""
    contents = [read_json(path) or {} for path in sorted(folder.glob("*.json"))]
    failed = [one for one in contents if "error" in one]
    lines = [f"- `{one['name']}`: {one['error']}" for one in failed]
    return ["## Failed runs", "", *lines, ""] if lines else []


if __name__ == "__main__":
    main()
