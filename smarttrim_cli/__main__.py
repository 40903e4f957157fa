"""``python -m smarttrim_cli``: the same as the ``smarttrim`` command."""

from __future__ import annotations

from smarttrim_cli.cli.app import main

if __name__ == "__main__":
    main()
