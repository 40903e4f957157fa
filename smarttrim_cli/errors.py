"""Exceptions that the command line turns into messages and exit codes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class SmartTrimError(Exception):
    """Base of all errors this package raises on purpose.

    Args:
        message: What is wrong.
        where: The place: file and line, recipe key, sample id.
        hint: What the user can do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        """One readable text: place, problem, remedy."""
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  {self.hint}" if self.hint else text


class UserError(SmartTrimError):
    """The user's mistake (recipe, files, arguments): exit code 2."""

    exit_code = 2


class CheckFailed(SmartTrimError):
    """A check that the user asked for (``--require``) did not hold: exit code 1."""

    exit_code = 1


def some(items: Sequence[str], separator: str = ", ", most: int = 5) -> str:
    """The first of many for a message, and how many more there are."""
    rest = len(items) - most
    return separator.join(items[:most]) + (f"{separator}and {rest} more" if rest > 0 else "")


@contextmanager
def naming(path: str | Path, hidden: Path | None = None) -> Iterator[None]:
    """While writing ``path``: an OSError that does not name its file (a full disk) gets the name.

    Args:
        path: What is written, as the user knows it.
        hidden: What is written first and then moved there: an error that names it gets the name, too.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None or error.filename == str(hidden):
            error.filename = str(path)
        raise
