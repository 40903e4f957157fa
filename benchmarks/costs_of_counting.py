"""What it costs to know what every instance cost: ``python benchmarks/costs_of_counting.py``.

Evaluation notes the kept tokens and heads of every batch and computes MACs per instance and part from them.
Three things are timed, in turn, on the same batches of random instances:

- ``forward``: the packed forward pass of a batch;
- ``noting``: what is done after every batch;
- ``computing``: the cost model over many instances, at once, divided among the batches;
- ``per_batch``: for comparison, the cost model run after every batch.

Shares are those of a forward pass, the median over rounds of neighbouring measurements; ``share`` is
that of noting and computing together. Models: METER-base for VQA at 288 pixels, trimmed to 2x at random
weights, and a model of the quick start's size. It prints a table and writes ``docs/results/counting.json``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import _full_size as full_size
import torch

from smarttrim_cli.engine.costs import CostLog
from smarttrim_cli.engine.inference import Predictions, add_costs
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.recipe import load_recipe

RESULTS = full_size.RESULTS / "counting.json"
QUICK_START = full_size.ROOT / "recipes" / "quickstart.yaml"
BATCH_SIZE = 8
COMPUTED_AT_ONCE = 512
"""Batches whose costs are computed together."""


def recipes() -> dict[str, Any]:
    """What is measured, by name."""
    return {"quickstart": load_recipe(QUICK_START, []), "meter_vqa_288": full_size.recipe_of("meter")}


def trimmed(recipe: Any) -> tuple[TrimmedModel, dict[str, torch.Tensor]]:
    """A model trimmed to 2x, prepared, and a batch."""
    backbone = full_size.backbone_of(recipe)
    inputs = full_size.joined(full_size.examples(backbone, BATCH_SIZE))
    return full_size.trimmed_model(recipe, backbone, 2.0, inputs).prepare(), inputs


def measure(
    model: TrimmedModel, inputs: dict[str, torch.Tensor], rounds: int, batches: int
) -> dict[str, Any]:
    """Milliseconds per batch, and shares of a forward pass."""
    contexts: list[Any] = []
    note = CostLog(model, Predictions())

    def forward(_: int) -> None:
        contexts.append(model(inputs, "packed"))

    variants = {
        "forward": forward,
        "noting": lambda _: note.add(contexts[-1].context),
        "per_batch": lambda _: add_costs(Predictions(), model, contexts[-1].decisions),
    }
    taken = full_size.interleaved(variants, 1, rounds)
    taken["computing"] = [_computing(model, contexts[-1].context, batches) for _ in range(rounds)]
    shares = {
        name: full_size.ratio(taken[name], taken["forward"]) for name in ("noting", "computing", "per_batch")
    }
    return {
        "batch_size": BATCH_SIZE,
        "milliseconds": {name: sorted(times)[len(times) // 2] for name, times in taken.items()},
        "shares": shares,
        "share": shares["noting"] + shares["computing"],
    }


def _computing(model: TrimmedModel, context: Any, batches: int) -> float:
    """Milliseconds per batch of the cost model over many batches."""
    log = CostLog(model, Predictions())
    for _ in range(batches):
        log.add(context)
    start = time.perf_counter()
    log.flush()
    return (time.perf_counter() - start) * 1e3 / batches


def show(name: str, result: dict[str, Any]) -> None:
    """One model's lines."""
    times, shares = result["milliseconds"], result["shares"]
    print(f"{name}: a packed forward pass of {result['batch_size']} takes {times['forward']:.1f} ms")
    for part in ("noting", "computing", "per_batch"):
        print(f"  {part:<10}{times[part]:8.3f} ms  {shares[part]:.2%}")
    print(f"  noting and computing: {result['share']:.2%} of a forward pass")


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="What counting MACs costs during evaluation.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="the small model only, for the tests")
    given = parser.parse_args(arguments)
    report: dict[str, Any] = {"environment": full_size.start(given.threads), "rounds": given.rounds}
    for name, recipe in recipes().items():
        if given.quick and name != "quickstart":
            continue
        model, inputs = trimmed(recipe)
        report[name] = measure(model, inputs, given.rounds, 2 if given.quick else COMPUTED_AT_ONCE)
        show(name, report[name])
    full_size.write(given.output, report)


if __name__ == "__main__":
    main()
