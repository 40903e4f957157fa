"""Reading checkpoint files: nothing in them runs, and what is wrong with one is said."""

from __future__ import annotations

import argparse
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from smarttrim_cli.backbones._loading import LoadReport, load_tensors, read_tensors
from smarttrim_cli.errors import UserError

STATE = {"layer.weight": torch.arange(6.0).view(2, 3), "layer.bias": torch.ones(2)}


class Callback:
    """Like a class of a training framework."""


class Slots:
    """Its state is no dictionary."""

    __slots__ = ("rate",)


class Settings(dict):
    """A dictionary class, like those that configuration libraries save."""


def same(found: dict[str, Any]) -> bool:
    return list(found) == list(STATE) and all(torch.equal(found[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model": STATE, "optimizer": {"state": {}}},
        {"state_dict": {f"module.{name}": value for name, value in STATE.items()}},
        {"model_state_dict": {f"module._orig_mod.{name}": value for name, value in STATE.items()}},
        {
            "state_dict": STATE,
            "callbacks": {Callback: {"best": torch.zeros(1)}},
            "hyper_parameters": Settings(loss_names=Settings(vqa=1), args=argparse.Namespace(lr=1e-5)),
            "path": Path("a/b"),
        },
        {
            "model": STATE,
            "callbacks": {"best": np.float64(0.7), "random": np.arange(3), "type": np.dtype("f4")},
        },
    ],
    ids=["bare", "lightning", "blip", "data_parallel", "compiled", "foreign_classes", "numpy"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saved_is_read(tmp_path: Path, content: Any, zipped: bool) -> None:
    if not zipped and "callbacks" in content:
        pytest.skip("files of before torch 1.6 are read with known classes only")
    torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    assert same(read_tensors(tmp_path / "a.ckpt"))


def test_objects_that_nothing_stands_in_for_are_said_to_be_such(tmp_path: Path) -> None:
    """The file is not damaged."""
    settings = Slots()
    settings.rate = 0.1
    torch.save({"model": STATE, "settings": settings}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="objects other than weights"):
        read_tensors(tmp_path / "a.pth")


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    found = read_tensors(str(tmp_path / "a.safetensors"))
    assert {name: value.tolist() for name, value in found.items()} == {
        n: v.tolist() for n, v in STATE.items()
    }


class _Reduces:
    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("function", [os.mkdir, eval, print, exec])
def test_nothing_in_a_file_runs(
    tmp_path: Path, function: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argument = "made" if function is os.mkdir else "print('ran')"
    torch.save({"state_dict": STATE, "x": _Reduces(function, argument)}, "a.ckpt")
    try:
        assert same(read_tensors("a.ckpt"))
    except UserError as error:
        assert "could run code" in str(error) and "state dict alone" in str(error)
    assert capsys.readouterr().out == "" and not Path("made").exists()


def damaged(folder: Path) -> dict[str, Path]:
    """Files that are none, by what is to be said of them."""
    torch.save({"state_dict": STATE}, folder / "whole.ckpt")
    whole = (folder / "whole.ckpt").read_bytes()
    contents = {
        "damaged one": whole[:-200],
        "or a damaged": b"",
        "not a checkpoint file": b"<html>not found</html>",
        "no weights in this file; it holds epoch, net": None,
        "not a readable safetensors file": b"\x08\x00\x00\x00\x00\x00\x00\x00{}",
    }
    files = {}
    for number, (message, content) in enumerate(contents.items()):
        suffix = "safetensors" if "safetensors" in message else "ckpt"
        files[message] = folder / f"{number}.{suffix}"
        if content is None:
            torch.save({"epoch": 3, "net": STATE}, files[message])
        else:
            files[message].write_bytes(content)
    folder_path = folder / "folder.ckpt"
    folder_path.mkdir()
    return {**files, "Is a directory": folder_path, "no such file": folder / "none.ckpt"}


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    for message, path in {**damaged(tmp_path), "there is no": tmp_path / "none.safetensors"}.items():
        with pytest.raises(UserError, match=message) as error:
            read_tensors(path)
        assert error.value.where == str(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_plain_pickle_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"state_dict": _Reduces(os.mkdir, str(tmp_path / "made"))}))
    with pytest.raises(UserError):
        read_tensors(path)
    assert not (tmp_path / "made").exists()


# --- the report ---


def model() -> nn.ModuleDict:
    return nn.ModuleDict({"body": nn.Linear(3, 2), "head": nn.Linear(2, 4)})


def tensors(**changes: Any) -> dict[str, Any]:
    full = {name: torch.full_like(value, 0.5) for name, value in model().state_dict().items()}
    full |= {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in full.items() if value is not None}


def test_a_file_that_fits() -> None:
    target, lines = model(), []
    report = load_tensors(
        target, tensors(), where="f", unused=["old.7.x"], resized=["p: 1 to 2"], log=lines.append
    )
    assert all((value == 0.5).all() for value in target.state_dict().values())
    assert report == LoadReport("f", list(target.state_dict()), ["old.7.x"], [], {}, ["p: 1 to 2"])
    assert lines == ["resized p: 1 to 2", "1 tensors of f are not used: old.7.x"]


def test_a_head_may_be_fresh_and_is_named() -> None:
    target, lines = model(), []
    before = target["head"].weight.clone()
    given = tensors(head__weight=None, head__bias=torch.zeros(9), other=torch.zeros(1))
    report = load_tensors(
        target, given, where="f", may_be_fresh=lambda name: name.startswith("head"), log=lines.append
    )
    assert report.fresh == ["head.weight", "head.bias"] == [*report.missing, *report.mismatched]
    assert report.mismatched == {"head.bias": ((9,), (4,))} and report.unused == ["other"]
    assert torch.equal(target["head"].weight, before) and (target["body"].weight == 0.5).all()
    assert lines == [
        "1 tensors of f are not used: other",
        "head.bias starts afresh: its shape is (9,) in f, (4,) in the model",
        "not in f, starting afresh: head.weight",
    ]


def test_all_that_does_not_fit_is_named_and_nothing_is_loaded() -> None:
    target = model()
    before = target["head"].weight.clone()
    with pytest.raises(UserError) as error:
        load_tensors(target, tensors(body__weight=None, body__bias=torch.zeros(5)), where="f")
    assert "missing: body.weight; shape of body.bias: (5,) in the file, (2,) in the model" in str(error.value)
    assert torch.equal(target["head"].weight, before)


def test_many_problems_are_counted() -> None:
    with pytest.raises(UserError, match=r"missing: 4; and 3 more"):
        LoadReport("f", ["a"], missing=[str(number) for number in range(8)]).raise_if_unusable()


def test_many_unused_names_are_told_in_families() -> None:
    lines: list[str] = []
    names = [f"blocks.{index}.attn.mask" for index in range(12)] + ["ln.weight"]
    LoadReport("f", ["a"], unused=names).describe(lines.append)
    assert lines == ["13 tensors of f are not used: blocks.*.attn.mask (12), ln.weight"]


# --- odd files ---


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({3: torch.ones(2)}, "a tensor is named 3"),
        ({"odd": torch.eye(3).to_sparse()}, "odd is a sparse tensor"),
        ({"odd": torch.ones(3, device="meta")}, r"odd is an empty \(meta\) tensor"),
    ],
)
def test_tensors_that_are_no_plain_ones_are_named(
    tmp_path: Path, changed: dict[Any, Any], message: str
) -> None:
    torch.save({**STATE, **changed}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=message) as error:
        read_tensors(tmp_path / "a.pth")
    assert error.value.where == str(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (torch.ones(2, dtype=torch.int32), "body.bias is of int32, which are no weights"),
        (torch.ones(2, dtype=torch.complex64), "body.bias is of complex64"),
        (torch.tensor([1.0, math.nan]), "body.bias has values that are not finite"),
        (torch.tensor([1.0, -math.inf], dtype=torch.bfloat16), "body.bias has values that are not finite"),
    ],
)
def test_values_that_are_no_weights_are_named(bias: torch.Tensor, message: str) -> None:
    target = model()
    before = target["body"].weight.clone()
    with pytest.raises(UserError, match=message):
        load_tensors(target, tensors(body__bias=bias), where="f")
    assert torch.equal(target["body"].weight, before)


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    """Its bytes are numbers, too: nothing else tells."""
    state = {"layer.weight": torch.full((100,), 1.5)}
    torch.save(state, tmp_path / "a.ckpt")
    content = (tmp_path / "a.ckpt").read_bytes()
    number = state["layer.weight"][:1].numpy().tobytes()
    place = content.index(number * 100)
    (tmp_path / "a.ckpt").write_bytes(content[:place] + bytes(4) + content[place + 4 :])
    with pytest.raises(UserError, match=r"damaged: the check sum of a/data/0 differs"):
        read_tensors(tmp_path / "a.ckpt")


def test_check_sums_need_not_have_been_computed(tmp_path: Path) -> None:
    computed = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        torch.save(STATE, tmp_path / "a.ckpt")
    finally:
        torch.serialization.set_crc32_options(computed)
    assert same(read_tensors(tmp_path / "a.ckpt"))
