"""Reading JSON data files, with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from smarttrim_cli.errors import UserError


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: The file is missing, unreadable, not UTF-8, or not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError("no such file", where=str(path)) from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text (byte {error.start})", where=str(path)) from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})",
            where=str(path),
            hint="The file may be incomplete: download or copy it again.",
        ) from error
