"""Plug-ins of the user's own that are wrong are named before the work, with what is wrong in them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smarttrim_cli import registry
from smarttrim_cli.engine.artifact import Bundle, TrimmerConfig, trimmers_for
from smarttrim_cli.engine.build import build
from smarttrim_cli.engine.plugin_checks import (
    lacking,
    refuse_incomplete_task,
    refuse_odd_task,
    refuse_odd_trimmers,
)
from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.trimmers.base import Trimmer
from tests import tiny
from tests.engine.tiny_run import tiny_recipe

OWN = "my_package.mine"
PLUGIN = """
from pydantic import BaseModel
from torch import nn
from smarttrim_cli.trimmers.base import Trimmer

class Options(BaseModel):
    pass

SCORES = "token"

class Mine(Trimmer):
    def __init__(self, width):
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, view):
        return self.score(view.tokens).squeeze(-1)

def build(options, site):
    return Mine(site.width)
"""


class OfOurs:
    """A task of ours, with something of its own."""

    def __init__(self, real: Any, **own: Any) -> None:
        self.__dict__.update({"real": real, **own})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class Given(Trimmer):
    """Gives whatever a function makes of what it is given."""

    def __init__(self, scores: Any, cost: Any = 0) -> None:
        super().__init__()
        self.scores, self.cost = scores, cost

    def forward(self, *arguments: Any) -> Any:
        return self.scores(*arguments)

    def token_macs(self) -> Any:
        return self.cost


def ones(view: Any) -> Tensor:
    return torch.ones(view.tokens.shape[:2])


def fails(view: Any) -> Tensor:
    raise ValueError("my own trouble")


def looked_at(trimmer: nn.Module, site: str = "vision.1.token", name: str = OWN) -> TrimmedModel:
    model = TrimmedModel(tiny.meter(), {site: trimmer})
    refuse_odd_trimmers(model, {site.rpartition(".")[2].removeprefix("self_"): {"name": name}})
    return model


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (lambda view: ones(view)[..., None], r"scores of shape \(1, \d+, 1\), not \(1, \d+\)"),
        (lambda view: ones(view)[:, 1:], r"scores of shape"),
        (lambda view: ones(view) > 0, "scores of bool, not of floating point"),
        (lambda view: ones(view).long(), "scores of int64"),
        (lambda view: ones(view) * torch.nan, r"not numbers \(nan\)"),
        (lambda view: None, "gives no tensor of scores, but NoneType"),
        (fails, "cannot be used: ValueError: my own trouble"),
    ],
)
def test_what_is_no_score(scores: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        looked_at(Given(scores))
    assert caught.value.where == "trimmer my_package.mine at vision.1.token"
    looked_at(Given(scores), name="cross_modal")  # ours are held by tests


@pytest.mark.parametrize("cost", [None, -1, True, "7", float("nan")])
def test_what_is_no_cost(cost: Any) -> None:
    with pytest.raises(UserError, match=r"token_macs\(\) gives .*, not a number of MACs"):
        looked_at(Given(ones, cost))


def test_what_scores_heads_is_looked_at_too() -> None:
    with pytest.raises(UserError, match=r"scores of shape \(2, 1\), not \(2, 4\)") as caught:
        looked_at(Given(lambda cls, guide, ids: torch.ones(len(cls), 1)), "vision.0.self_head")
    assert caught.value.where == "trimmer my_package.mine at vision.0.self_head"


def test_a_look_changes_nothing() -> None:
    before = torch.get_rng_state()
    model = looked_at(Given(lambda view: torch.rand(view.tokens.shape[:2])))
    assert torch.equal(torch.get_rng_state(), before) and model.training
    assert not model.sites["vision.1.token"]._forward_hooks


@pytest.mark.parametrize(
    ("name", "before", "after", "message"),
    [
        ("no_trimmer", "class Mine(Trimmer)", "class Mine(nn.Module)", "build gives Mine, not a Trimmer"),
        ("odd_scores", '"token"', '"tokens"', "SCORES is 'tokens', not 'token' or 'head'"),
        ("no_scores", "SCORES =", "SCORE =", "has no SCORES"),
        ("no_build", "def build", "def make", "has no build"),
    ],
)
def test_a_plug_in_that_is_no_trimmer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, before: str, after: str, message: str
) -> None:
    (tmp_path / f"{name}.py").write_text(PLUGIN.replace(before, after), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = TrimmerConfig(["token.vision"], {"name": f"{name}:"}, None)
    with pytest.raises(UserError, match=message):
        trimmers_for(tiny.meter(), config)


def test_a_recipe_with_a_trimmer_that_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found when the model is built, before the training."""
    (tmp_path / "own_trimmers").mkdir()
    wrong = PLUGIN.replace(".squeeze(-1)", "")
    (tmp_path / "own_trimmers/wide.py").write_text(wrong, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = tiny_recipe(
        tmp_path, "pruning.token_trimmer={name: own_trimmers.wide}", "pruning.head_trimmer=null"
    )
    with pytest.raises(UserError, match="trimmer own_trimmers.wide at .*: gives scores of shape"):
        build(recipe, lambda text: None)


def test_a_task_that_lacks_members() -> None:
    class Half:
        metric = "accuracy"

    with pytest.raises(UserError, match="its Half lacks answer, auxiliary, collate, ") as caught:
        refuse_incomplete_task(Half(), OWN)
    assert caught.value.where == "task.name" and "metric" not in caught.value.message
    refuse_incomplete_task(Half(), "vqa")  # ours are held by tests


@pytest.mark.parametrize(
    ("name", "style"),
    [("vqa", "classifies"), ("vqa", "generates"), ("nlvr2", "classifies"), ("snli_ve", "classifies")]
    + [("retrieval", "matches"), ("retrieval", "contrasts"), ("captioning", "generates")],
)
def test_the_members_asked_for_are_those_of_our_tasks(name: str, style: str) -> None:
    options = registry.options("tasks", {"name": name, "data": {"name": "jsonl", "data_dir": "nowhere"}})
    assert lacking(registry.load("tasks", name).build(options, print, style)) == []


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build(tiny_recipe(tmp_path_factory.mktemp("task")), lambda text: None)


def scored(score: Any) -> dict[str, Any]:
    return {"id": 1, "type": "a", "question": "b", "prediction": "c", "reference": "d", "score": score}


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"collate": lambda *_: {}}, "collate gives dict, not a Batch"),
        ({"loss": lambda *_: torch.ones(2)}, r"loss gives a tensor of shape \(2,\), not a scalar tensor"),
        ({"loss": lambda *_: None}, "loss gives NoneType, not a scalar tensor"),
        ({"predict": lambda *_: None}, "predict gives NoneType, not a list of dicts"),
        ({"predict": lambda *_: [scored(1.0)]}, "predict gives 1 records for 2 instances"),
        ({"predict": lambda *_: [{"id": 1}] * 2}, "lack type, question, prediction, reference, score"),
        ({"predict": lambda *_: [scored(math.nan)] * 2}, "gives nan as a score, not a finite number or None"),
        ({"predict": lambda *_: [scored("right")] * 2}, "gives 'right' as a score"),
        ({"summarize": lambda *_: None}, "summarize gives NoneType, not a dict with count"),
        ({"summarize": lambda *_: {"count": 2, "acc": 0.5}}, "summarize gives no number as accuracy"),
    ],
)
def test_what_a_task_gives(bundle: Bundle, own: dict[str, Any], message: str) -> None:
    odd = replace(bundle, task=OfOurs(bundle.task, **own))
    with pytest.raises(UserError, match=message) as caught:
        refuse_odd_task(odd, OWN)
    assert caught.value.where == "task my_package.mine"
    refuse_odd_task(odd, "vqa")  # ours are held by tests


def test_a_task_that_is_well(bundle: Bundle) -> None:
    before = torch.get_rng_state()
    refuse_odd_task(bundle, OWN)
    assert torch.equal(torch.get_rng_state(), before)
    unscored = {"predict": lambda *_: [scored(None)] * 2, "summarize": lambda *_: {"count": 2}}
    refuse_odd_task(replace(bundle, task=OfOurs(bundle.task, **unscored)), OWN)
