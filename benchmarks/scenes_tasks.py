"""Train, trim and score every task on the embedded scenes, with both backbones.

``python benchmarks/scenes_tasks.py`` runs recipes/scenes/{meter,blip}/*.yaml (with ``--only`` some of them),
writes docs/results/scenes_tasks.json and the table in docs/scenes_tasks.md. Runs that are there already are
only evaluated; ``--report`` shows what was measured before. Chance is what the trimmed model's predictions
score for other instances (each for the one half the split away); for retrieval that of a random order.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from smarttrim_cli.engine.artifact import build_task
from smarttrim_cli.engine.build import section_of
from smarttrim_cli.engine.evaluate import evaluate
from smarttrim_cli.engine.files import write_json
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.engine.runs import Run, is_run
from smarttrim_cli.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "scenes_tasks.json"
PAGE, MARK = ROOT / "docs" / "scenes_tasks.md", "<!-- table of benchmarks/scenes_tasks.py -->"
COLUMNS = ("recipe", "metric", "chance", "full", "trimmed", "instances", "fewer MACs", "training, s")


def main() -> None:
    """Parse, run, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="such as meter/vqa blip/nlvr2")
    parser.add_argument("--report", action="store_true", help="show what was measured before")
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    for path in [] if options.report else sorted((ROOT / "recipes" / "scenes").glob("*/*.yaml")):
        name = f"{path.parent.name}/{path.stem}"
        left_out = path.parent.name == "study" or path.stem.startswith("pretrain")
        if left_out or (options.only and name not in options.only):
            continue
        results[name] = result_of(load_recipe(path))
        write_json(RESULTS, results)
    table = "\n".join(table_of(results))
    print(table)
    before, _, after = PAGE.read_text("utf-8").split(MARK)
    PAGE.write_text(f"{before}{MARK}\n{table}\n{MARK}{after}", "utf-8")


def result_of(recipe: Recipe) -> dict[str, Any]:
    """Scores of full and trimmed model, and chance; trains the run if it is not there."""
    run = Run(Path(recipe.output_dir))
    if not (is_run(run.path) and run.model.exists()):
        finetune(recipe, overwrite=True)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        predictions = Path(folder) / "predictions.jsonl"
        measured = evaluate(str(run.path), predictions_out=predictions)
        records = [json.loads(line) for line in predictions.read_text("utf-8").splitlines()]
    metric = measured["metric"]
    sides = {
        side: {key: measured[side].get(key) for key in (metric, f"{metric}_se", "count", "gmacs")}
        for side in ("full", "trimmed")
    }
    return {
        "metric": metric,
        **sides,
        "chance": chance(recipe, measured, records),
        "macs_speedup": measured["speedup"]["macs"],
        "retained": measured["trimmed"].get("retained"),
        "train_seconds": run.summary().get("train_seconds"),
        "evaluate_seconds": round(time.perf_counter() - started, 1),
    }


def chance(recipe: Recipe, measured: dict[str, Any], records: list[dict[str, Any]]) -> float:
    """See the module's docstring."""
    trimmed = measured["trimmed"]
    if "texts" in trimmed:
        return random_recall(trimmed["images"], trimmed["texts"])
    half = len(records) // 2
    moved = [
        {**record, "prediction": records[(place + half) % len(records)]["prediction"]}
        for place, record in enumerate(records)
    ]
    task = build_task(section_of(recipe.task), recipe.backbone.name, lambda text: None)
    return float(task.summarize(task.rescore(moved, measured["split"]))[measured["metric"]])


def random_recall(images: int, texts: int) -> float:
    """Mean recall of a random order: of one image among all, and of any of an image's texts among all."""
    own = texts // images

    def missed(k: int) -> float:
        share = 1.0
        for place in range(k):
            share *= (texts - own - place) / (texts - place)
        return share

    recalls = [min(k / images, 1.0) for k in (1, 5, 10)] + [1 - missed(k) for k in (1, 5, 10)]
    return sum(recalls) / len(recalls)


def table_of(results: dict[str, Any]) -> list[str]:
    """Lines of a Markdown table; scores with their standard errors."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for name, one in sorted(results.items()):
        metric = one["metric"]
        sides = (f"{one[s][metric]:.3f} ± {one[s][f'{metric}_se']:.3f}" for s in ("full", "trimmed"))
        count, speedup = str(one["trimmed"]["count"]), f"{one['macs_speedup']:.2f}x"
        rows.append(
            (name, metric, f"{one['chance']:.3f}", *sides, count, speedup, f"{one['train_seconds']:.0f}")
        )
    return [f"| {' | '.join(row)} |" for row in rows]


if __name__ == "__main__":
    main()
