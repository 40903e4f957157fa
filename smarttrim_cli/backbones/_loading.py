"""Official checkpoint files: reading their tensors, and an account of what became of each.

Nothing in a file is executed: safetensors, or torch's own format with ``weights_only``. What else a training
framework left in there (callbacks, hyper-parameters, optimizer states) is read as plain dictionaries, and
dropped.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from smarttrim_cli.errors import UserError, some

Log = Callable[[str], None]

_WRAPPERS = ("state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""
"""Where the weights lie in a file: Lightning's key, BLIP's key."""
_DAMAGED = (
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    EOFError,
)
"""What torch raises for files that are none of its own."""
_FOREIGN = (pickle.UnpicklingError, TypeError, ValueError)
"""The same for sound ones with objects for which nothing can stand in."""
_PLAIN = "save plain tensors of floating-point numbers"
_SHOWN = 5


@dataclass
class LoadReport:
    """What became of the tensors of a checkpoint file.

    Attributes:
        where: The file.
        loaded: Names in the model that got their value from the file.
        unused: Names in the file that the model has no place for.
        missing: Names in the model that the file has not.
        mismatched: Names in the model whose shape in the file differs, to (shape in the file, in the model).
        resized: What was changed to fit (position embeddings), one readable line each.
    """

    where: str
    loaded: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    resized: list[str] = field(default_factory=list)

    @property
    def fresh(self) -> list[str]:
        """Names in the model that keep their initial values."""
        return [*self.missing, *self.mismatched]

    def raise_if_unusable(self, may_be_fresh: Callable[[str], bool] = lambda name: False) -> None:
        """Refuse a file that does not give the model its weights.

        Args:
            may_be_fresh: Whether a name may keep its initial value: that of a task's head.

        Raises:
            UserError: Names are missing or have another shape that may not.
        """
        if not self.loaded:
            held = ", ".join(self.unused[:_SHOWN])
            raise UserError(f"not a checkpoint of this backbone: it holds {held} ...", where=self.where)
        problems = [f"missing: {name}" for name in self.missing if not may_be_fresh(name)]
        problems += [
            f"shape of {name}: {found} in the file, {wanted} in the model"
            for name, (found, wanted) in self.mismatched.items()
            if not may_be_fresh(name)
        ]
        if problems:
            raise UserError(
                f"the checkpoint does not fit the model: {some(problems, '; ')}",
                where=self.where,
                hint="set the sizes of the backbone's recipe section to those of the checkpoint",
            )

    def describe(self, log: Log) -> None:
        """Say what was resized, left out and initialised afresh."""
        for line in self.resized:
            log(f"resized {line}")
        if self.unused:
            log(f"{len(self.unused)} tensors of {self.where} are not used: {_families(self.unused)}")
        for name, (found, wanted) in self.mismatched.items():
            log(f"{name} starts afresh: its shape is {found} in {self.where}, {wanted} in the model")
        if self.missing:
            log(f"not in {self.where}, starting afresh: {_families(self.missing)}")


def load_tensors(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    where: str,
    unused: Sequence[str] = (),
    resized: Sequence[str] = (),
    may_be_fresh: Callable[[str], bool] = lambda name: False,
    log: Log = lambda text: None,
) -> LoadReport:
    """Load tensors under the model's own names, and report.

    Args:
        model: Gets the values; unchanged if an error is raised.
        tensors: Name in the model to value.
        where: The file, for messages.
        unused: Names in the file that were not mapped to any name of the model.
        resized: Lines on what was changed to fit.
        may_be_fresh: Whether a name may keep its initial value: that of a task's head.
        log: Receives the report in words.

    Raises:
        UserError: Names are missing or have another shape that may not, or values are no weights.
    """
    own = model.state_dict()
    report = LoadReport(where, unused=list(unused), resized=list(resized))
    report.unused += [name for name in tensors if name not in own]
    for name, value in own.items():
        if name not in tensors:
            report.missing.append(name)
        elif tensors[name].shape != value.shape:
            report.mismatched[name] = (tuple(tensors[name].shape), tuple(value.shape))
        else:
            report.loaded.append(name)
    report.raise_if_unusable(may_be_fresh)
    for name in report.loaded:
        _refuse_wrong_values(name, tensors[name], own[name], where)
    model.load_state_dict({name: tensors[name] for name in report.loaded}, strict=False)
    report.describe(log)
    return report


def _refuse_wrong_values(name: str, value: Tensor, own: Tensor, where: str) -> None:
    """Refuse whole or complex numbers in place of weights, and weights that are nan or infinite."""
    if not own.is_floating_point():
        return
    if not value.is_floating_point():
        kind = str(value.dtype).removeprefix("torch.")
        raise UserError(f"{name} is of {kind}, which are no weights", where=where, hint=_PLAIN)
    if not value.float().isfinite().all():
        raise UserError(
            f"{name} has values that are not finite (nan or infinity)",
            where=where,
            hint="the file may be damaged, or its training diverged",
        )


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The weights in a checkpoint file, on the CPU.

    Args:
        path: A ``.safetensors`` file, or one of ``torch.save`` (``.ckpt``, ``.pth``, ``.pt``, ``.bin``) with
            a state dict, bare or under ``state_dict``, ``model`` or ``model_state_dict``.

    Raises:
        UserError: It is missing, damaged or holds no weights, or other than plain ones.
    """
    path = Path(path)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = content if isinstance(content, Mapping) else {}
    tensors = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    if not tensors:
        there = (
            f"; it holds {some(list(map(str, content)))}" if isinstance(content, Mapping) and content else ""
        )
        hint = f"save the state dict alone, or under {' or '.join(_WRAPPERS)}"
        raise UserError(f"there are no weights in this file{there}", where=str(path), hint=hint)
    for name, value in tensors.items():
        _refuse_odd(name, value, path)
    while wrapped := [prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in tensors)]:
        tensors = {name.removeprefix(wrapped[0]): value for name, value in tensors.items()}
    return tensors


def _refuse_odd(name: Any, value: Tensor, path: Path) -> None:
    """Refuse a tensor that cannot be any model's."""
    if not isinstance(name, str):
        raise UserError(f"a tensor is named {name!r}, which is no text", where=str(path))
    kinds = {"an empty (meta)": value.is_meta, "a quantised": value.is_quantized}
    kinds["a sparse"] = value.layout != torch.strided
    found = [kind for kind, present in kinds.items() if present]
    if found:
        raise UserError(f"{name} is {found[0]} tensor, not a plain one", where=str(path), hint=_PLAIN)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(str(path))
    except FileNotFoundError as error:
        raise UserError("there is no such file", where=str(path)) from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"not a readable safetensors file: {error}", where=str(path)) from error


class _Dropped:
    """Stands in for every class that torch does not know: makes an empty dictionary, whatever the class."""

    def __new__(cls, *args: Any) -> Any:
        return OrderedDict()


class _Opaque:
    """The same for numpy's, whose state is no dictionary."""

    def __init__(self, *args: Any) -> None:
        """Nothing is kept."""

    def __setstate__(self, state: Any) -> None:
        """Nor here."""


def _stand_in(name: str) -> type:
    return _Opaque if name.partition(".")[0] == "numpy" else _Dropped


def _read_torch(path: Path) -> Any:
    """A file of ``torch.save``; classes that torch does not know are never imported: a dict stands in."""
    _refuse_damaged(path)
    try:
        with torch.serialization.safe_globals([(_stand_in(name), name) for name in _unknown_classes(path)]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError("there is no such file", where=str(path)) from error
    except OSError as error:
        raise UserError(f"the file cannot be read: {error.strerror}", where=str(path)) from error
    except _DAMAGED as error:
        if isinstance(error, _FOREIGN) and zipfile.is_zipfile(path):
            raise UserError(
                "the file holds objects other than weights, which are not loaded because that could run code",
                where=str(path),
                hint="save its state dict alone: torch.save(state_dict, path)",
            ) from error
        raise UserError(
            "not a checkpoint file of torch, or a damaged one",
            where=str(path),
            hint="compare its size with that of the original; a TorchScript archive does not do",
        ) from error


def _refuse_damaged(path: Path) -> None:
    """Refuse a file with a part whose check sum differs: torch reads it whatever it is.

    All are 0 where they were not computed; files older than torch 1.6 have none. What is not a sound archive
    is left to torch.

    Raises:
        UserError: There is one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if not any(part.CRC for part in archive.infolist()):
                return
            broken = archive.testzip()
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        return
    if broken is not None:
        raise UserError(
            f"damaged: the check sum of {broken} differs", where=str(path), hint="download or copy it again"
        )


def _unknown_classes(path: Path) -> list[str]:
    """Names of the classes in a file that ``weights_only`` refuses; none for files older than torch 1.6."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:
        return []


def _families(names: Sequence[str]) -> str:
    """Names, with those that differ only in a layer's number taken together: ``blocks.*.mask (12)``."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
    return ", ".join(
        found[0] if len(found) == 1 else f"{family} ({len(found)})" for family, found in groups.items()
    )
