"""The processes that this one started, and waiting for what they do."""

import contextlib
import pathlib
import time
from collections.abc import Callable


def child_pids() -> list[int]:
    found: list[int] = []
    for task in pathlib.Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that ended meanwhile has no more children
            found += [int(pid) for pid in (task / "children").read_text().split()]
    return found


def wait_until(condition: Callable[[], object], patience_s: float = 60.0) -> None:
    """Looks again and again; AssertionError where it takes longer."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
