"""What a training step with trimmers costs beside a plain one: ``python benchmarks/training.py``.

Full-size METER and BLIP on VQA at 288 pixels, random weights, random images, questions and targets, float32.
Three steps of one model, each a forward, a backward, gradient clipping and AdamW as in the recipe:

- ``plain``: fine-tuning without trimmers, mode ``full``;
- ``trimmed``: masked forward and cost loss, without self-distillation;
- ``distilled``: the whole step, self-distillation's forward of the full model included.

Trimmers are as in the recipe, in the middle of training: their scores are set so that, with the noise of
Eq. 8, they keep about what the recipe's targets ask for (tokens in a straight line over the layers).

All three run once per round, one after the other; ratios are taken within a round, and of times and ratios
the median over rounds is shown. ``cpu`` is the same of the processor time of all threads, which other work on
the machine disturbs less. Memory is what tensors created by the step hold (on a CPU without kernels'
workspaces): ``activations`` at the end of the forward pass, ``peak`` until the end of the backward pass,
gradients included; weights and AdamW's moments, the same for all, are left out of both.
It prints a table and writes ``docs/results/training.json``, where models that are not measured stay as they
were.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _full_size import RESULTS, ROOT, TEXT_TOKENS, TINY
from torch import Tensor

from smarttrim_cli.engine.artifact import build_task
from smarttrim_cli.engine.build import attach, plan_for_model, section_of
from smarttrim_cli.engine.devices import best_device, describe_environment, keep_freed_memory, synchronize
from smarttrim_cli.engine.files import write_json
from smarttrim_cli.engine.memory import LiveMemory
from smarttrim_cli.engine.optim import make_optimizer
from smarttrim_cli.engine.plan import backbone_without_data
from smarttrim_cli.pruning.gumbel import Sampling
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.objective import Objective, Target, Weights
from smarttrim_cli.pruning.sites import TOKEN, Site
from smarttrim_cli.recipe import Recipe, load_recipe
from smarttrim_cli.tasks._generation import next_tokens
from smarttrim_cli.tasks.base import Batch
from smarttrim_cli.trimmers._profile import kept_by_layer

PLAIN, TRIMMED, DISTILLED = STEPS = ("plain", "trimmed", "distilled")
ANSWERS, ANSWER_TOKENS = 3, 4
"""Distinct answers of a question, and tokens of each, where the backbone writes them."""


@dataclass(frozen=True)
class Bench:
    """A model with all that its three steps need."""

    model: TrimmedModel
    objectives: Mapping[str, Objective]
    optimizer: torch.optim.Optimizer
    max_norm: float
    batch: Batch
    target: Target

    def forward(self, kind: str) -> dict[str, Tensor]:
        """Losses of one kind of step."""
        target = None if kind == PLAIN else self.target
        return self.objectives[kind](self.batch, target, 0.5)

    def step(self, kind: str) -> dict[str, Tensor]:
        """A whole step, as the trainer takes it."""
        losses = self.forward(kind)
        losses["loss"].backward()
        self.update()
        return {name: loss.detach() for name, loss in losses.items()}

    def update(self) -> None:
        """What comes after the backward pass."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


def bench(recipe: Recipe, batch_size: int, device: torch.device) -> Bench:
    """Model, batch, optimizer and the three objectives of a recipe."""
    torch.manual_seed(recipe.seed)
    with torch.device(device):
        model = attach(recipe, backbone_without_data(recipe)).to(device).train()
    plan = plan_for_model(recipe, model, TEXT_TOKENS)
    half_way(model, plan.kept)
    task = build_task(section_of(recipe.task), recipe.backbone.name, log=lambda text: None)
    cost = recipe.strategy.cost_loss
    objectives = {
        kind: Objective(
            model, task.loss, task.logits, Weights(distillation, cost=cost.weight, cost_on=cost.on)
        )
        for kind, distillation in ((PLAIN, 0.0), (TRIMMED, 0.0), (DISTILLED, 1.0))
    }
    return Bench(
        model,
        objectives,
        make_optimizer(objectives[PLAIN], recipe.optimizer),
        recipe.optimizer.max_grad_norm,
        random_batch(model.backbone, batch_size, device),
        Target(plan.kept, 1 / plan.speedup, Sampling(1.0, 1.0)),
    )


def half_way(model: TrimmedModel, kept: Mapping[str, float]) -> None:
    """Scores near those that keep so much: logits of the share that a site keeps of what it gets."""
    for name, trimmer in model.sites.items():
        site = Site.parse(name)
        share = kept[site.group]
        if site.kind == TOKEN:
            line = [1.0, *kept_by_layer(share, model.architecture.depth(site.stream))]
            share = line[site.layer + 1] / line[site.layer]
        trimmer.start_keeping(float(torch.logit(torch.tensor(share))))


def random_batch(backbone: Any, batch_size: int, device: torch.device) -> Batch:
    """Random inputs of training and soft targets."""
    generator = torch.Generator().manual_seed(1)
    inputs = backbone.example_inputs(TEXT_TOKENS, batch=batch_size)
    if backbone.form.decoding is None:
        targets = {"answers": torch.rand(batch_size, backbone.form.num_labels, generator=generator)}
    else:
        del inputs["num_steps"]
        shape = (batch_size, ANSWERS, ANSWER_TOKENS)
        ids = torch.randint(3, backbone.options.dec_id, shape, generator=generator)
        mask = torch.ones_like(ids)
        inputs |= {"answer_ids": ids, "answer_mask": mask}
        weights = torch.rand(shape[:2], generator=generator).softmax(-1)
        targets = {"answers": next_tokens(ids, mask), "weights": weights}
    inputs, targets = (
        {name: tensor.to(device) for name, tensor in given.items()} for given in (inputs, targets)
    )
    return Batch(inputs, torch.arange(batch_size, device=device), targets)


def memory(one: Bench, kind: str) -> dict[str, float]:
    """MB that a step's tensors hold."""
    if one.batch.instance_ids.is_cuda:
        return _cuda_memory(one, kind)
    with LiveMemory() as mode:
        loss = one.forward(kind)["loss"]
        activations = mode.live
        loss.backward()
    one.update()
    return {"activations_mb": activations / 1e6, "peak_mb": mode.peak / 1e6}


def _cuda_memory(one: Bench, kind: str) -> dict[str, float]:
    device = next(one.model.parameters()).device
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    loss = one.forward(kind)["loss"]
    activations = torch.cuda.memory_allocated(device) - before
    loss.backward()
    peak = torch.cuda.max_memory_allocated(device) - before
    one.update()
    return {"activations_mb": activations / 1e6, "peak_mb": peak / 1e6}


def measure(one: Bench, rounds: int, device: torch.device) -> dict[str, Any]:
    """Times and memory of the three steps, and what was kept meanwhile."""
    kept: dict[str, list[float]] = {}
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in STEPS}
    held = {kind: memory(one, kind) for kind in STEPS}  # which warms up, too
    for _ in range(rounds):
        for kind in STEPS:
            started, cpu = time.perf_counter(), time.process_time()
            losses = one.step(kind)
            synchronize(device)
            times[kind].append((time.perf_counter() - started, time.process_time() - cpu))
            for name, value in losses.items():
                if name.startswith("kept/"):
                    kept.setdefault(name.removeprefix("kept/"), []).append(float(value))
    lines = {kind: line(times[kind], times[PLAIN], held[kind], held[PLAIN]) for kind in STEPS}
    groups = {
        group: {"target": one.target.kept[group], "kept": statistics.mean(values)}
        for group, values in kept.items()
    }
    return {"groups": groups, "steps": lines}


def line(
    times: list[tuple[float, float]],
    plain: list[tuple[float, float]],
    held: Mapping[str, float],
    plain_held: Mapping[str, float],
) -> dict[str, float]:
    """What is said of one kind of step; times are pairs of wall and processor time."""
    pairs = list(zip(times, plain, strict=True))
    return {
        "seconds": statistics.median(wall for wall, _ in times),
        "time_ratio": statistics.median(own[0] / other[0] for own, other in pairs),
        "cpu_ratio": statistics.median(own[1] / other[1] for own, other in pairs),
        **held,
        "activations_ratio": held["activations_mb"] / plain_held["activations_mb"],
        "peak_ratio": held["peak_mb"] / plain_held["peak_mb"],
    }


def table_of(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    """A model's steps in lines."""
    kept = ", ".join(f"{group} {one['kept']:.2f}" for group, one in result["groups"].items())
    yield f"{name}; kept: {kept}"
    yield f"{'':12}" + "".join(
        f"{head:>10}" for head in ("s", "x plain", "cpu x", "act. MB", "x", "peak MB", "x")
    )
    keys = (
        "seconds",
        "time_ratio",
        "cpu_ratio",
        "activations_mb",
        "activations_ratio",
        "peak_mb",
        "peak_ratio",
    )
    for kind, values in result["steps"].items():
        yield f"{kind:12}" + "".join(f"{values[key]:10.{0 if key.endswith('mb') else 3}f}" for key in keys)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", choices=["meter", "blip", "all"], default="all")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", help="such as cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="tiny models: the figures mean nothing")
    parser.add_argument("--output", type=Path, default=RESULTS / "training.json")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = arguments(argv)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    device = best_device(options.device)
    names = ("meter", "blip") if options.backbone == "all" else (options.backbone,)
    results = json.loads(options.output.read_text("utf-8")) if options.output.exists() else {}
    given = {"environment": describe_environment(device), "text_tokens": TEXT_TOKENS}
    given |= {"batch_size": options.batch_size, "rounds": options.rounds}
    for name in names:
        overrides = TINY[name] if options.quick else ()
        recipe = load_recipe(ROOT / "recipes" / name / "vqa_288_2.0x.yaml", list(overrides))
        found = measure(bench(recipe, options.batch_size, device), options.rounds, device)
        print(*table_of(name, found), "", sep="\n", flush=True)
        results[name] = given | _rounded(found)
        write_json(options.output, results)


def _rounded(value: Any) -> Any:
    """Floats to four digits after the point."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
