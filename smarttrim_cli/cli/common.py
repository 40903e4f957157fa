"""What all subcommands share: the options --quiet, --debug and --version, errors and exit codes, results."""

from __future__ import annotations

import errno
import functools
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

import smarttrim_cli
from smarttrim_cli import registry
from smarttrim_cli.cli.console import Console
from smarttrim_cli.errors import SmartTrimError, UserError

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_ELSEWHERE = "finetune: output_dir=...; other commands: --out or --output"
_REFUSED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENOENT,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EEXIST,
    errno.EFBIG,
    errno.EMFILE,
    errno.EIO,
)
_NO_MEMORY = ("can't allocate memory", "out of memory", "Cannot allocate memory", "failed to map segment")
_LESS_MEMORY = "smaller batches (train.per_device_train_batch_size, evaluate.batch_size) or images need less"


def _print_version(value: bool) -> None:
    if value:
        print(f"smarttrim {smarttrim_cli.__version__}")
        raise typer.Exit


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only results, warnings and errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Version = Annotated[
    bool,
    typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.")
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also write the result as JSON.")
]
Require = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CHECK",
        help="Exit with 1 unless this holds, such as 'trimmed.accuracy>=0.93'. Repeatable.",
    ),
]
TargetAndOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TARGET|KEY=VALUE",
        help="A recipe (path or name) or a run directory; default: the newest run, else the quick-start "
        "recipe. Then overrides of recipe keys, such as evaluate.split=val.",
    ),
]
_COMMON = {"quiet": Quiet, "debug": Debug, "version": Version}


def new_app(text: str) -> typer.Typer:
    """A Typer application with plain help and without Typer's own tracebacks."""
    return typer.Typer(
        help=text,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def subcommand(app: typer.Typer, function: Callable[..., None], name: str | None = None) -> None:
    """Register a subcommand.

    Args:
        app: Where it goes.
        function: Takes a ``Console`` first; its other parameters are the command's. --quiet, --debug and
            --version are added, and its errors become messages and exit codes.
        name: Of the subcommand; default: the function's.
    """
    signature = inspect.signature(function, eval_str=True)
    own = list(signature.parameters.values())[1:]
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(key, keyword, default=False, annotation=kind) for key, kind in _COMMON.items()]
    context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    parameters = [context, *(parameter.replace(kind=keyword) for parameter in own), *added]

    @functools.wraps(function)
    def run(ctx: typer.Context, *, quiet: bool, debug: bool, version: bool, **arguments: Any) -> None:
        above = ctx.obj or Console()
        console = Console(quiet or above.quiet, debug or above.debug)
        with errors_as_exit_codes(console):
            _check_working_folder()
            function(console, **arguments)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command(name or function.__name__)(run)


@contextmanager
def errors_as_exit_codes(console: Console) -> Iterator[None]:
    """Turn errors into a message on stderr and an exit code: 1, 2 (the user's mistake), 130 (interrupted)."""
    try:
        yield
    except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
        raise  # Typer's own
    except KeyboardInterrupt as error:
        raise _failure(console, "interrupted", getattr(error, "exit_code", 130)) from None
    except SmartTrimError as error:
        kind = "error" if isinstance(error, UserError) else "failed"
        raise _failure(console, f"{kind}: {error}", error.exit_code) from None
    except Exception as error:
        raise _failure(console, *_describe_exception(error)) from None


def _check_working_folder() -> None:
    """Refuse to work in a folder that was removed: no relative path means anything there.

    Raises:
        UserError: It was.
    """
    try:
        os.getcwd()
    except OSError as error:
        text = f"the working folder cannot be used: {error.strerror}"
        raise UserError(text, hint="go to one that exists (cd)") from error


def _describe_exception(error: Exception) -> tuple[str, int]:
    """Message and exit code of an error that this package did not raise itself."""
    text = " ".join(str(error).split())
    system = _of_the_system(error)
    number = system.errno if system is not None else None
    if number in _FULL_DISK or "No space left on device" in text:
        place = getattr(system, "filename", None) or text
        return f"error: the disk is full: {place}\n  free some space, or write elsewhere ({_ELSEWHERE})", 1
    if system is not None and number in _REFUSED and system.filename:
        return f"error: {system.filename}: {system.strerror}", 2
    if number == errno.ENOMEM or isinstance(error, MemoryError) or any(sign in text for sign in _NO_MEMORY):
        return f"failed: there is not enough memory\n  {_LESS_MEMORY} ({text[:120]})", 1
    if _has_lost_another(error, text):
        return f"failed: another process of this run has ended; what it said tells why ({text[:120]})", 1
    place = _place_in_a_plugin(error)
    if place is not None:
        return (
            f"error: {place}: {type(error).__name__}: {text}\n  with --debug the command shows the traceback",
            2,
        )
    message = f"internal error: {type(error).__name__}: {text}"
    return f"{message}\n  please report this; with --debug the command shows the traceback", 1


def _place_in_a_plugin(error: Exception) -> str | None:
    """Where in a plug-in of the user's own an error was met, or whose plug-in lacks what was asked for."""
    steps = traceback.walk_tb(error.__traceback__)
    own = [
        f"{frame.f_code.co_filename}, line {line}"
        for frame, line in steps
        if registry.is_of_a_plugin(str(frame.f_globals.get("__name__")))
    ]
    if own:
        return own[-1]
    lacking = type(getattr(error, "obj", None))  # of an AttributeError
    return f"plug-in {lacking.__module__}" if registry.is_of_a_plugin(lacking.__module__) else None


def _of_the_system(error: BaseException | None) -> OSError | None:
    """The operating system's error that another came of; libraries tell of it in their own ways."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _has_lost_another(error: Exception, text: str) -> bool:
    """Whether an error is that of a process whose group has lost a member."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not (distributed.is_available() and distributed.is_initialized()):
        return False
    of_a_backend = "gloo" in text or "NCCL" in text or isinstance(error, distributed.DistError)
    return isinstance(error, RuntimeError) and of_a_backend


def _failure(console: Console, text: str, code: int) -> typer.Exit:
    if console.debug:
        traceback.print_exc()
    print(text, file=sys.stderr, flush=True)
    return typer.Exit(code)


def is_override(text: str) -> bool:
    """Whether an argument is a ``KEY=VALUE``; whatever exists is a file or a folder."""
    return "=" in text and not os.path.exists(text)  # Path.exists() fails on what is too long for a name


def split_target(arguments: Sequence[str] | None) -> tuple[str | None, list[str]]:
    """Separate ``[TARGET] [KEY=VALUE]...``.

    Raises:
        UserError: There is more than one target.
    """
    overrides = [text for text in arguments or () if is_override(text)]
    targets = [text for text in arguments or () if text not in overrides]
    if len(targets) > 1:
        raise UserError(
            f"expected one recipe or run directory, found {', '.join(targets)}",
            hint="overrides are written key=value, without spaces around the =",
        )
    return (targets[0] if targets else None), overrides


def check_output(path: Path | None, option: str = "--output") -> None:
    """Refuse a file that cannot be written, before the work is done.

    Raises:
        UserError: It is a directory, its folder cannot be made, or nothing can be written there.
    """
    if path is None:
        return
    from smarttrim_cli.engine.files import check_writable

    check_writable(path, option)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make its folder: {error.strerror}", where=f"{option} {path}") from error


def check_apart(**files: Path | None) -> None:
    """Refuse options that would write one file over another.

    Args:
        files: By option, ``predictions_out`` for ``--predictions-out``.

    Raises:
        UserError: Two of them name the same place.
    """
    seen: dict[Path, str] = {}
    for name, path in files.items():
        if path is None:
            continue
        option = f"--{name.replace('_', '-')}"
        other = seen.setdefault(path.resolve(), option)
        if other != option and (path.is_file() or not path.exists()):  # a device takes both
            text = f"{other} and {option} would write one file"
            raise UserError(text, where=str(path), hint="name two files")


def deliver(console: Console, result: Any, text: str, *, as_json: bool, output: Path | None) -> None:
    """Print a result as text or JSON, and write it to ``output`` if there is one."""
    from smarttrim_cli.cli.render import to_json

    content = to_json(result)
    print_and_write(console, content if as_json else text, output, content)


def print_and_write(console: Console, text: str, output: Path | None, content: str) -> None:
    """Print a text, and write another to ``output`` if there is one; neither is lost with the other."""
    from smarttrim_cli.engine.files import write_text

    try:
        console.result(text)
    finally:
        if output is not None:
            write_text(output, content)
