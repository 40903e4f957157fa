"""Files of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file that others may read if the umask allows; the library's own is the user's."""
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), str(path))
    path.chmod(mode)
