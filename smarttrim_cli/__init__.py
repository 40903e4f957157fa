"""SmartTrim: adaptive token and head trimming for vision-language models.

``smarttrim_cli.load(path)`` opens an exported model; the command line is ``smarttrim --help``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smarttrim_cli.api import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import ``load`` on first use, so that ``import smarttrim_cli`` does not import torch."""
    if name == "load":
        from smarttrim_cli.api import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
