"""Standard output and error that take whatever is printed: closed ones, and those of a plain ASCII locale."""

from __future__ import annotations

import codecs
import os
import sys
import warnings
from typing import TextIO

_IN_ASCII = {"±": "+/-", "×": "x"}


def make_streams_usable() -> None:
    """Replace closed streams by ones that keep nothing; spell out what a stream's encoding lacks."""
    codecs.register_error("spelled_out", _spelled_out)
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="spelled_out")


def ignore_warnings_of_size() -> None:
    """Pillow warns at half the number of pixels that is refused.

    Once for all images: a filter that came and went with each would have Python repeat every other warning.
    """
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")


def _spelled_out(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    escaped = (_IN_ASCII.get(one, one.encode("ascii", "backslashreplace").decode()) for one in lacking)
    return "".join(escaped), error.end
