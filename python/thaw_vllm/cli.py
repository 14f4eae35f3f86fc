"""The command `thaw`: the binary that this package carries."""

from __future__ import annotations

import os
import pathlib
import sys
from typing import NoReturn

BINARY = pathlib.Path(__file__).parent / "bin" / "thaw"


def main() -> NoReturn:
    """Becomes the binary, with this process's arguments."""
    os.execv(BINARY, ["thaw", *sys.argv[1:]])
