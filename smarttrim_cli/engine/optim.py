"""Optimizer and learning-rate schedule of a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.objective import Objective
from smarttrim_cli.recipe.schema import Optimizer


def parameter_parts(objective: Objective) -> dict[str, str]:
    """Parameter name (in the objective) to part: the backbone's parts, ``trimmers`` and ``auxiliary``."""
    part_of = objective.model.backbone.part_of
    parts = {}
    for name, _ in objective.named_parameters():
        if name.startswith("model.backbone."):
            parts[name] = part_of(name.removeprefix("model.backbone."))
        else:
            parts[name] = "trimmers" if name.startswith("model.trimmers.") else "auxiliary"
    return parts


def parameter_groups(objective: Objective, settings: Optimizer) -> list[dict[str, object]]:
    """Parameter groups with the learning rate of their part; vectors (biases, norms) get no weight decay.

    Raises:
        UserError: A multiplier is for a part that does not exist.
    """
    parts = parameter_parts(objective)
    known = set(parts.values()) | {"trimmers", "auxiliary"}
    for name in settings.multipliers:
        if name not in known:
            raise UserError(
                f"no part named {name!r}",
                where=f"optimizer.multipliers.{name}",
                hint=f"parts: {', '.join(sorted(known))}",
            )
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((parts[name], parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": settings.learning_rate * settings.multipliers.get(part, 1.0),
            "weight_decay": settings.weight_decay if decay else 0.0,
            "part": part,
        }
        for (part, decay), parameters in groups.items()
    ]


def make_optimizer(objective: Objective, settings: Optimizer) -> torch.optim.Optimizer:
    """AdamW over the parts of a model."""
    return torch.optim.AdamW(parameter_groups(objective, settings), betas=settings.betas, eps=settings.eps)


def schedule_factor(settings: Optimizer, total_steps: int) -> Callable[[int], float]:
    """Multiplier of the learning rate at a step: linear warm-up, then linear, cosine or constant."""
    warmup = settings.warmup_steps
    warmup_steps = int(warmup * total_steps) if warmup < 1 else int(warmup)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        done = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        if settings.lr_scheduler_type == "linear":
            return max(1.0 - done, 0.0)
        if settings.lr_scheduler_type == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
        return 1.0

    return factor
