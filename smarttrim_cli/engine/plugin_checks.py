"""Plug-ins from outside the package, looked at before the work: what they lack, and what their trimmers give.

What is wrong in them would else be met amid a training, by whoever uses it, as if it were a mistake of ours.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from smarttrim_cli import registry
from smarttrim_cli.engine.artifact import as_described
from smarttrim_cli.errors import UserError, some
from smarttrim_cli.pruning.model import TrimmedModel, site_info
from smarttrim_cli.pruning.sites import TOKEN, Site
from smarttrim_cli.tasks.base import Task

_COSTS = ("fixed_macs", "token_macs", "pair_macs")
_TEXT_TOKENS, _INSTANCES = 5, 2


def refuse_incomplete_task(task: Any, name: str) -> None:
    """Refuse a task of the user's own that lacks members.

    Raises:
        UserError: It does; they are named.
    """
    if not registry.is_outside(name) or hasattr(type(task), "__getattr__"):
        return
    missing = lacking(task)
    if missing:
        raise UserError(
            f"task {name!r} is incomplete: its {type(task).__name__} lacks {', '.join(missing)}",
            where="task.name",
            hint="docs/adding_a_task.md lists the members of a task",
        )


def lacking(task: Any) -> list[str]:
    """Members of a task that are not there; none is asked for, since a property may not be ready yet."""
    members = {*Task.__annotations__, *(name for name in vars(Task) if not name.startswith("_"))}
    return [name for name in sorted(members) if inspect.getattr_static(task, name, None) is None]


def refuse_odd_trimmers(model: TrimmedModel, sections: Mapping[str, Any]) -> None:
    """Run trimmers of the user's own once, on random inputs, and refuse what is of no use.

    Args:
        model: Ready but for its training.
        sections: Recipe sections of its trimmers by what they score, ``token`` and ``head``; None for none.

    Raises:
        UserError: Scores are of another shape or type, or nan; costs are no numbers; or a trimmer fails.
    """
    outside = {
        kind: own["name"] for kind, own in sections.items() if own and registry.is_outside(own["name"])
    }
    own = {name: outside[kind] for name in model.sites if (kind := _kind(name)) in outside}
    if not own:
        return
    for site, plugin in own.items():
        _refuse_odd_costs(model.sites[site], f"trimmer {plugin} at {site}")
    inputs = model.backbone.example_inputs(_TEXT_TOKENS, batch=_INSTANCES)
    inputs = {key: value.to(model.threshold.device) for key, value in inputs.items()}
    training = model.training
    with _looked_at(model, own), as_described("pruning"), torch.random.fork_rng(devices=[]), torch.no_grad():
        model.eval()(inputs, "packed", instance_ids=torch.arange(_INSTANCES))
    model.train(training)


@contextmanager
def _looked_at(model: TrimmedModel, own: Mapping[str, str]) -> Iterator[None]:
    """While the model runs: what trimmers give has to be scores."""
    hooks = []
    for site, plugin in own.items():
        trimmer, where = model.sites[site], f"trimmer {plugin} at {site}"
        heads = None if _kind(site) == "token" else site_info(model.architecture, Site.parse(site)).heads

        def look(_: Any, given: Any, scores: Any, heads: int | None = heads, where: str = where) -> None:
            shape = given[0].tokens.shape[:2] if heads is None else (len(given[0]), heads)
            _refuse_odd_scores(scores, tuple(shape), where)

        hooks.append(trimmer.register_forward_hook(look))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _kind(site: str) -> str:
    return "token" if Site.parse(site).kind == TOKEN else "head"


def _refuse_odd_scores(scores: Any, shape: tuple[int, ...], where: str) -> None:
    problem = None
    if not isinstance(scores, Tensor):
        problem = f"gives no tensor of scores, but {type(scores).__name__}"
    elif tuple(scores.shape) != shape:
        problem = f"gives scores of shape {tuple(scores.shape)}, not {shape}"
    elif not scores.is_floating_point():
        problem = f"gives scores of {str(scores.dtype).removeprefix('torch.')}, not of floating point"
    elif scores.isnan().any():
        problem = "gives scores that are not numbers (nan)"
    if problem:
        raise UserError(problem, where=where, hint="docs/adding_a_trimmer.md says what a trimmer gives")


def _refuse_odd_costs(trimmer: Any, where: str) -> None:
    for method in _COSTS:
        cost = getattr(trimmer, method)()
        if isinstance(cost, bool) or not isinstance(cost, int | float) or not 0 <= cost < float("inf"):
            problem = f"{method}() gives {some([repr(cost)])}, not a number of MACs"
            raise UserError(problem, where=where, hint="docs/adding_a_trimmer.md says what a trimmer gives")
