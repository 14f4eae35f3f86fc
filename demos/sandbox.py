"""Runs pytest on code that nobody has read, with limits on CPU, memory, time, files and network.

The child has no network (a network namespace of its own), few seconds of CPU, little memory, no new
privileges, an empty environment, and a directory that is thrown away. It is a fence for a demo, not for
an enemy: it can read what this user can.
"""

import contextlib
import ctypes
import dataclasses
import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_NO_NEW_PRIVS, _PR_SET_PDEATHSIG = 38, 1
_NO_NAMESPACE = 97


@dataclasses.dataclass(frozen=True)
class Limits:
    """For one run: seconds of CPU and of the clock, bytes of memory and of a file."""

    cpu_s: int = 5
    wall_s: float = 15.0
    memory_bytes: int = 512 << 20
    file_bytes: int = 1 << 20
    allow_network: bool = False


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`reason` says what ended it where tests did not."""

    passed: int
    failed: int
    seconds: float
    reason: str


def _fence(limits: Limits) -> None:
    """Of this process and all that it becomes. What cannot be fenced is not run."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if not limits.allow_network:
        alone = libc.unshare(_CLONE_NEWNET) == 0 or libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0
        if not alone:
            sys.exit(_NO_NAMESPACE)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_s, limits.cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_bytes, limits.file_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def run_tests(code: str, tests: str, limits: Limits) -> Verdict:
    """Writes solution.py and test_solution.py to a scratch directory and runs pytest there."""
    with tempfile.TemporaryDirectory(prefix="thaw-sandbox-") as folder:
        place = pathlib.Path(folder)
        (place / "solution.py").write_text(code)
        (place / "test_solution.py").write_text(tests)
        pytest = ["-I", "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", folder, "--tb=no"]
        pytest += ["--import-mode=importlib", "-o", f"pythonpath={folder}", "test_solution.py"]
        fence = [sys.executable, "-I", __file__, json.dumps(dataclasses.asdict(limits))]
        started = time.perf_counter()
        with tempfile.TemporaryFile() as output:  # no pipe: what it says has the limit of a file
            process = subprocess.Popen(
                [*fence, *pytest],
                cwd=folder,
                env={"PATH": "/usr/bin:/bin", "HOME": folder, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            reason = ""
            try:
                process.wait(timeout=limits.wall_s)
            except subprocess.TimeoutExpired:
                reason = f"over {limits.wall_s:g} s"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)
            seconds = time.perf_counter() - started
            output.seek(0)
            told = output.read().decode(errors="replace")
    if process.returncode == _NO_NAMESPACE:
        raise SystemExit("there is no network namespace to be had here; --allow-network runs without one")
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error)", told)}
    if not reason and process.returncode not in (0, 1):
        status = process.returncode
        reason = signal.Signals(-status).name if status < 0 else "the code cannot be imported"
    return Verdict(counts.get("passed", 0), counts.get("failed", 0) + counts.get("error", 0), seconds, reason)


if __name__ == "__main__":
    _fence(Limits(**json.loads(sys.argv[1])))
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
