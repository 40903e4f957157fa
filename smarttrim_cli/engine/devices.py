"""Which device to run on, and how it is described beside a measurement."""

from __future__ import annotations

import ctypes
import os
import platform

import torch

from smarttrim_cli.errors import UserError

_THREADS_PER_PROCESSOR = 64
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h


def best_device(name: str | None = None, where: str = "--device") -> torch.device:
    """The named device, or a GPU if there is one, else the CPU; ``where`` it was named, for the error.

    Raises:
        UserError: The device does not exist here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        float(torch.zeros(1, device=device))  # "meta" makes tensors, and has no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split()).split(". ")[0]
        raise UserError(f"device {name!r} is not available: {reason}", where=where) from error
    return device


def set_threads(number: int, where: str) -> None:
    """Let torch compute with so many CPU threads; ``where`` the number was named, for the error.

    Raises:
        UserError: They are far more than the machine has processors; torch would fail, or crash.
    """
    most = _THREADS_PER_PROCESSOR * (os.cpu_count() or 1)
    if number > most:
        raise UserError(
            f"{number} threads on {os.cpu_count()} processors", where=where, hint=f"at most {most}"
        )
    torch.set_num_threads(number)


def several_on_cpu() -> bool:
    """Whether this is one of several processes (``torchrun``, ``mpirun``) on a machine without a GPU.

    accelerate has to be told: by itself it would take each for the only one, and all would write to one run.
    """
    names = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    found = torch.accelerator.current_accelerator(check_available=True)
    together = any(int(os.environ.get(name, 1)) > 1 for name in names)
    return together and (found is None or found.type == "mps")


def first_process() -> bool:
    """Whether this process is the only one of its run, or the first: the one that says what came out."""
    return int(os.environ.get("RANK", 0)) == 0


def synchronize(device: torch.device) -> None:
    """Wait for work queued on a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next use, instead of giving it back to the system at once.

    By default it gives back large blocks, so that every activation of a large model is new memory, which the
    system clears page by page. Does nothing where there is another C library.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, (1 << 31) - 1)):
        libc.mallopt(option, value)


def describe_environment(device: torch.device) -> dict[str, str | int]:
    """What a measurement was made on."""
    import timm
    import transformers

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "device": device.type,
        "device_name": name,
        "instructions": torch.backends.cpu.get_cpu_capability(),  # of processors sold under one name
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "timm": timm.__version__,
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
