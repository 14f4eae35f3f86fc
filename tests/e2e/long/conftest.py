"""The fixtures of the folder above, for the runs that take minutes."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from conftest import serve, server  # noqa: E402, F401
