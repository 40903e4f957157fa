"""Files that are complete or absent: everything the engine writes goes to a temporary name first."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smarttrim_cli.errors import UserError, naming


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; a device, a pipe or what a link points to is written as it stands."""
    if path.exists() and (path.is_symlink() or not path.is_file()):
        with naming(path):
            path.write_text(text, encoding="utf-8", newline="\n")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            temporary.write_text(text, encoding="utf-8", newline="\n")
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically; numbers that are not finite become null."""
    write_text(path, json.dumps(finite(content), indent=2, ensure_ascii=False) + "\n")


def finite(content: Any) -> Any:
    """Plain data with None in place of nan and infinity, which JSON does not have."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def check_writable(path: Path | None, where: str, *, folder: bool = False) -> None:
    """Refuse a file, or a folder, that cannot be written, before the work is done; leaves nothing behind.

    Raises:
        UserError: It is the other of the two, or a folder above it is a file, may not be written to, or takes
            no files.
    """
    if path is None:
        return
    if path.is_symlink() and not path.exists():
        text = f"is a link to what is not there: {os.readlink(path)}"
        raise UserError(text, where=f"{where} {path}", hint="choose another place")
    if path.is_dir() != folder and path.exists():
        kinds = ("a file, not a directory", "a directory, not a file")
        raise UserError(f"is {kinds[path.is_dir()]}", where=f"{where} {path}", hint="choose another place")
    above = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    problem = None
    if not above.is_dir() and above != path:
        problem = f"{above} is a file, not a folder"
    elif not os.access(above, os.W_OK):
        problem = f"{above} may not be written to ({os.strerror(errno.EACCES)})"
    elif above.is_dir():
        try:
            with tempfile.TemporaryFile(dir=above):
                pass
        except OSError as error:
            problem = f"{above} takes no files ({error.strerror})"
    if problem is not None:
        text = f"cannot write there: {problem}"
        raise UserError(text, where=f"{where} {path}", hint="choose another place")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under its name only when the block ends well; an older one is replaced.

    Where the name is a link, so is what it points to.
    """
    path = path.resolve() if path.is_symlink() else path
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with naming(path):
            yield temporary
            replace_folder(temporary, path)
    except OSError as error:
        if Path(str(error.filename)).is_relative_to(temporary):  # a name that nobody knows
            error.filename = str(path / Path(str(error.filename)).relative_to(temporary))
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(new: Path, path: Path) -> None:
    """Move a finished folder into place; the older one goes last."""
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    if path.exists():
        os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        if old.exists():
            os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def mend_folder(path: Path) -> None:
    """After a process that was killed in :func:`new_folder`: the older one comes back, the rest goes."""
    for kind in ("old", "tmp"):
        for left in path.parent.glob(f".{path.name}.*.{kind}"):
            if kind == "old" and not path.exists():
                os.replace(left, path)
            else:
                shutil.rmtree(left, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file, a folder or a link, if it is there; not what a link points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
