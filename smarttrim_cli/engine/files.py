"""Files that are complete or absent: everything the engine writes goes to a temporary name first."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeGuard

from smarttrim_cli.errors import UserError, naming

_LONGEST_NAME = 200
"""Bytes; file systems take 255."""


def write_text(path: Path, text: str) -> None:
    """Write a text file as :func:`write_bytes` does, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; a device, a pipe or what a link points to is written as it stands."""
    if path.exists() and (path.is_symlink() or not path.is_file()):
        with naming(path):
            path.write_bytes(content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{_short(path.name)}.{os.getpid()}.tmp")
    try:
        with naming(path, temporary):
            temporary.write_bytes(content)
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # the one that matters is under way
            temporary.unlink(missing_ok=True)


def _short(name: str) -> str:
    """The name; of one that leaves no room for an ending, a hash."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= _LONGEST_NAME else hashlib.sha256(encoded).hexdigest()[:16]


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


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of a JSON file is a number that can be reckoned with: finite, and not too long."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


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
    above = next(place for place in (path, *path.absolute().parents) if place.exists())
    is_replaced = path.is_file() and not path.is_symlink()  # by one that is written beside it
    for place in (above, path.absolute().parent) if is_replaced else (above,):
        problem = _problem_of(place, is_itself=place == path)
        if problem is not None:
            text = f"cannot write there: {problem}"
            raise UserError(text, where=f"{where} {path}", hint="choose another place")


def _problem_of(place: Path, is_itself: bool) -> str | None:
    """Why nothing can be written to what is there: the file itself, or a folder above it."""
    if not place.is_dir() and not is_itself:
        return f"{place} is a file, not a folder"
    if not os.access(place, os.W_OK):
        read_only = hasattr(os, "statvfs") and os.statvfs(place).f_flag & os.ST_RDONLY
        reason = os.strerror(errno.EROFS if read_only else errno.EACCES)
        return f"{place} may not be written to ({reason})"
    if place.is_dir():
        try:
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            return f"{place} takes no files ({error.strerror})"
    return None


def identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another that takes its place; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size  # numbers of inodes change on some network file systems


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """While a file of a folder is read and written anew: other processes that do so wait, if they can."""
    try:
        import fcntl

        opened = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # Windows; a folder that is not there, which writing makes
        yield
        return
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


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
