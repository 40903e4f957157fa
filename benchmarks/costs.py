"""The costs in the paper's tables against ours: ``python benchmarks/costs.py``.

It prints both and writes ``docs/results/costs.json``. Measured are full-size untrimmed models with random
weights, as ``smarttrim profile`` does it (torchprofile); predicted is every recipe, as a dry run does it.

The paper's numbers are in ``paper_costs.json``: GMACs for one of ``passes`` (METER takes two for NLVR2), by
``count`` (``as_published``: a decoder projects keys and values of what it attends to for every beam and
step, as the official code does). Where the figure is not for texts as long as is typical of the task,
``text_tokens`` says for which.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torchprofile
from torch import nn

from smarttrim_cli.engine import profile as profiling
from smarttrim_cli.engine.build import attach, plan_for_model
from smarttrim_cli.engine.plan import backbone_without_data
from smarttrim_cli.pruning.cost import attention_macs, full_counts, macs_by_part
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parent.parent
PAPER = ROOT / "benchmarks" / "paper_costs.json"
RESULTS = ROOT / "docs" / "results" / "costs.json"

UNTRIMMED = {
    "recipes/meter/vqa_288_1.0x.yaml": 1,
    "recipes/meter/vqa_384_1.0x.yaml": 1,
    "recipes/blip/nlvr2_288_1.0x.yaml": 1,
    "recipes/blip/vqa_288_1.0x.yaml": 1,
    "recipes/blip/captioning_288_1.0x.yaml": 5,  # four captions of 15 steps and one of 16
}
"""A recipe for every untrimmed model in the paper's tables, and how many random instances are measured."""

OFFICIAL_PARTS = {
    "vision encoder": 27.307,
    "text encoder": 0.851,
    "transforms": 0.198,
    "image self-attention": 5.576,
    "image cross-attention": 2.403,
    "image FFN": 9.203,
    "text self-attention": 0.143,
    "text cross-attention": 2.401,
    "text FFN": 0.283,
    "poolers and head": 0.008,
}
"""GMACs that torchprofile counts in the official code of METER: VQA, 288x288, 10 text tokens."""

Row = dict[str, Any]


def paper_rows() -> dict[str, Row]:
    """Recipe file to what the paper says of its row."""
    rows: dict[str, Row] = json.loads(PAPER.read_text(encoding="utf-8"))
    return rows


def without_weights(recipe: Recipe) -> TrimmedModel:
    """A recipe's model on the meta device: all of its sizes, none of its memory."""
    with torch.device("meta"):
        return attach(recipe, backbone_without_data(recipe))


def predicted(recipe: Recipe, model: TrimmedModel, row: Row) -> dict[str, float]:
    """GMACs for one pass, for instances such as the paper's figure is for.

    Returns:
        ``full`` and ``trimmed``, counted as in the row, and the ``text_tokens`` they are for.
    """
    text_tokens = row.get("text_tokens", model.backbone.form.text_tokens)
    plan = plan_for_model(recipe, model, text_tokens)
    macs = (sum(plan.full_macs.values()), sum(plan.trimmed_macs.values()))
    if row["count"] == "as_published":
        assert plan.published is not None
        macs = plan.published
    full, trimmed = (value / row["passes"] / 1e9 for value in macs)
    return {"full": full, "trimmed": trimmed, "text_tokens": text_tokens}


def typical(row: Row) -> Row:
    """The row for texts as long as is typical of the task, which is what a dry run takes."""
    return {key: row[key] for key in ("count", "passes")}


def measured(path: str, row: Row) -> dict[str, Any]:
    """GMACs of an untrimmed model: as it runs, by torchprofile, and counted as in the row."""
    number = UNTRIMMED[path]
    report = profiling.profile(
        str(ROOT / path), random_weights=True, single_instance=True, num_instances=number
    )
    full = report["full"]
    counted = full["gmacs_as_published"] if row["count"] == "as_published" else full["gmacs"]
    return {
        "paper_gmacs": row["paper_gmacs"],
        "count": row["count"],
        "gmacs": counted,
        "difference": counted / row["paper_gmacs"] - 1,
        "instances": number,
        "torchprofile_gmacs": full["gmacs"],
        "cost_model_gmacs": full["gmacs_cost_model"],
    }


def meter_parts(backbone: nn.Module) -> dict[str, float]:
    """GMACs of the untrimmed METER by the parts of ``OFFICIAL_PARTS``, by the cost model."""
    architecture = backbone.architecture()
    counts = full_counts(architecture, backbone.token_counts(10))
    whole = macs_by_part(architecture, counts)
    macs = defaultdict(
        float,
        {
            "vision encoder": whole["vision_encoder"],
            "text encoder": whole["text_encoder"],
            "poolers and head": whole["head"],
        },
    )
    for cost in architecture.per_token:
        if cost.part == "cross_modal":
            macs["transforms"] += counts[f"{cost.stream}.in"] * cost.macs_per_token
    for layer in architecture.layers:
        if layer.part != "cross_modal":
            continue
        name, tokens = layer.stream.replace("vision", "image"), counts[f"{layer.stream}.in"]
        norm = tokens * layer.width  # one behind each of the three
        macs[f"{name} FFN"] += 2 * tokens * layer.width * layer.mlp_width + norm
        for _, spec in layer.attentions:
            kind = "self" if spec.memory_stream is None else "cross"
            memory = counts[f"{spec.memory_stream or layer.stream}.in"]
            attention = attention_macs(spec, layer.width, tokens, memory, spec.heads, layer.width)
            macs[f"{name} {kind}-attention"] += attention + norm
    return {name: macs[name] / 1e9 for name in OFFICIAL_PARTS}


def main() -> None:
    """Print the tables, write the results."""
    described = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=described).parse_args()
    profiling.WARMUP, profiling.REPEATS = 0, 1  # latency is not looked at
    rows = paper_rows()
    recipes = {path: load_recipe(ROOT / path) for path in rows}
    result: dict[str, Any] = {
        "versions": {"torch": torch.__version__, "torchprofile": torchprofile.__version__},
        "untrimmed": {},
        "meter_parts": {"official": OFFICIAL_PARTS},
        "recipes": {},
    }
    print(f"{'untrimmed, random weights':40} paper   ours  differs  count         torchprofile, as run")
    for path in UNTRIMMED:
        line = result["untrimmed"][path] = measured(path, rows[path])
        print(f"{_compared(path, line)}  {line['count']:12}  {line['torchprofile_gmacs']:7.3f}")

    ours = meter_parts(without_weights(recipes[next(iter(UNTRIMMED))]).backbone)
    result["meter_parts"]["cost_model"] = ours
    print(f"\n{'METER, VQA, 288x288, by part':36} official    ours")
    for name, gmacs in OFFICIAL_PARTS.items():
        print(f"{name:36} {gmacs:8.3f} {ours[name]:7.3f}")

    print(f"\n{'recipe, predicted':40} paper   ours  differs  count         text tokens  dry run")
    for path, row in rows.items():
        model = without_weights(recipes[path])
        costs = predicted(recipes[path], model, row)
        line = {**row, "text_tokens": costs["text_tokens"], "gmacs": costs["trimmed"]}
        line["difference"] = costs["trimmed"] / row["paper_gmacs"] - 1
        line["full_gmacs"] = costs["full"]
        line["dry_run_gmacs"] = predicted(recipes[path], model, typical(row))["trimmed"]
        result["recipes"][path] = line
        rest = f"{row['count']:12}  {line['text_tokens']:11}  {line['dry_run_gmacs']:7.1f}"
        print(f"{_compared(path, line)}  {rest}")
    RESULTS.write_text(json.dumps(_rounded(result), indent=2) + "\n", encoding="utf-8")


def _compared(path: str, line: Row) -> str:
    return f"{path:38} {line['paper_gmacs']:7.1f} {line['gmacs']:6.1f} {line['difference']:8.2%}"


def _rounded(value: Any) -> Any:
    """Floats to six digits after the point: kMACs, where the unit is GMACs."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return round(value, 6) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
