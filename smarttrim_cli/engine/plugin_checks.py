"""Plug-ins from outside the package, looked at before the work: what they lack, and what they give.

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
from smarttrim_cli.engine.artifact import Bundle, as_described
from smarttrim_cli.engine.files import is_number
from smarttrim_cli.errors import UserError, some
from smarttrim_cli.pruning.model import TrimmedModel, site_info
from smarttrim_cli.pruning.objective import StatefulLoss
from smarttrim_cli.pruning.sites import TOKEN, Site
from smarttrim_cli.tasks.base import Batch, Task

_COSTS = ("fixed_macs", "token_macs", "pair_macs")
_RECORD = ("id", "type", "question", "prediction", "reference", "score")
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


@torch.no_grad()
def refuse_odd_task(bundle: Bundle, name: str) -> None:
    """Take a task of the user's own once from samples to scores, and refuse what is of no use.

    Args:
        bundle: Ready but for its training.
        name: Of the task.

    Raises:
        UserError: Batches, losses, predictions or scores are not what the engine works with.
    """
    task, model = bundle.task, bundle.model
    if not registry.is_outside(name) or getattr(task, "two_stage", False):
        return
    training, where = model.training, f"task {name}"
    with torch.random.fork_rng(devices=[]):
        model.eval()
        if not isinstance(task.loss, StatefulLoss):  # that needs more than a batch
            batch = _batch_of(bundle, "train", where)
            output = model(batch.inputs, "full").output if batch else None
            _refuse_odd_loss(task.loss(output, batch) if batch else torch.zeros(()), where)
        batch = _batch_of(bundle, "eval", where)
        if batch:
            records = task.predict(model(batch.inputs, "full").output, batch, bundle.processor)
            _refuse_odd_records(records, len(batch), where)
            _refuse_odd_summary(task, task.summarize(task.finish(records)), records, where)
    model.train(training)


def _batch_of(bundle: Bundle, role: str, where: str) -> Batch | None:
    """A small batch of a split; None where its samples cannot be used, which is said elsewhere."""
    task, training = bundle.task, role == "train"
    split = task.split_name(role)
    dataset: Any = task.dataset(split, bundle.processor, limit=_INSTANCES, training=training)
    try:
        items = [dataset[index] for index in range(len(dataset))]
        batch: Any = task.collate(items, bundle.processor, training) if items else None
    except UserError:
        return None
    if items and not isinstance(batch, Batch):
        raise _odd(f"collate gives {type(batch).__name__}, not a Batch", where)
    return batch


def _refuse_odd_loss(loss: Any, where: str) -> None:
    if not isinstance(loss, Tensor) or loss.dim() > 0 or not loss.is_floating_point():
        given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise _odd(f"loss gives {given}, not a scalar tensor", where)


def _refuse_odd_records(records: Any, count: int, where: str) -> None:
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise _odd(f"predict gives {type(records).__name__}, not a list of dicts", where)
    if len(records) != count:
        raise _odd(f"predict gives {len(records)} records for {count} instances", where)
    for record in records:
        missing = [key for key in _RECORD if key not in record]
        if missing:
            raise _odd(f"records of predict lack {', '.join(missing)}", where)
        score = record["score"]
        if score is not None and not isinstance(score, bool) and not is_number(score):
            raise _odd(f"predict gives {score!r} as a score, not a finite number or None", where)


def _refuse_odd_summary(task: Any, summary: Any, records: list[Any], where: str) -> None:
    if not isinstance(summary, dict) or "count" not in summary:
        raise _odd(f"summarize gives {type(summary).__name__}, not a dict with count", where)
    scored = any(record["score"] is not None for record in records)
    if scored and not is_number(summary.get(task.metric)):
        raise _odd(f"summarize gives no number as {task.metric}, which is the task's metric", where)


def _odd(problem: str, where: str) -> UserError:
    return UserError(problem, where=where, hint="docs/adding_a_task.md lists the members of a task")


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
    with _looked_at(model, own), torch.random.fork_rng(devices=[]), torch.no_grad():
        model.eval()(inputs, "packed", instance_ids=torch.arange(_INSTANCES))
    model.train(training)


@contextmanager
def _looked_at(model: TrimmedModel, own: Mapping[str, str]) -> Iterator[None]:
    """While the model runs: what trimmers give has to be scores, and what fails in one is said to be its."""
    hooks = []
    begun = ["pruning"]
    for site, plugin in own.items():
        trimmer, where = model.sites[site], f"trimmer {plugin} at {site}"
        heads = None if _kind(site) == "token" else site_info(model.architecture, Site.parse(site)).heads

        def look(_: Any, given: Any, scores: Any, heads: int | None = heads, where: str = where) -> None:
            shape = given[0].tokens.shape[:2] if heads is None else (len(given[0]), heads)
            _refuse_odd_scores(scores, tuple(shape), where)
            begun.append("pruning")

        hooks.append(trimmer.register_forward_pre_hook(lambda *_, where=where: begun.append(where)))
        hooks.append(trimmer.register_forward_hook(look))
    try:
        with _named(begun):
            yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _named(places: list[str]) -> Iterator[None]:
    """Errors as those of the last of the places that are known when they are met."""
    try:
        yield
    except Exception as error:
        with as_described(places[-1]):
            raise error


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
