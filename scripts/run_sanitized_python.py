#!/usr/bin/env python3
"""Runs the tests of the Python extension with the build that `make test-asan` makes.

Python itself is not instrumented: the sanitizer's library is loaded before all others, and with
PYTHONMALLOC=malloc it sees what Python allocates. Errors end the process that makes them. Leaks count where
the extension allocated what was lost; what the interpreter and other extensions never give back is theirs.
"""

import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = pathlib.Path(os.environ.get("THAW_BUILD", ROOT / "build" / "asan"))
TESTS = ("test_engine.py", "test_client.py", "test_fan_outs.py", "test_line_pool.py")
# Frames that say nothing of whose memory it is.
ALLOCATORS = ("libclang_rt.asan", "libstdc++.so")


def library(name: str) -> str:
    """Where the compiler that built the extension has a library."""
    cache = (BUILD / "CMakeCache.txt").read_text()
    compiler = re.search(r"^CMAKE_CXX_COMPILER:\w+=(.+)$", cache, re.MULTILINE)
    if compiler is None:
        sys.exit(f"{BUILD}/CMakeCache.txt names no C++ compiler: run `make test-asan`, which configures it")
    command = [compiler[1], f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def is_ours(leak: str) -> bool:
    """Whether the first frame that is no allocator's is the extension's or the binary's."""
    for module in re.findall(r"^ *#\d+ module=(\S*)", leak, re.MULTILINE):
        name = pathlib.PurePath(module).name
        if not name.startswith(ALLOCATORS):
            return name.startswith(("_core.", "thaw"))
    return False


def main() -> None:
    logs = BUILD / "python-logs"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    options = [
        "detect_leaks=1",
        "abort_on_error=1",
        "exitcode=0",  # of leaks, which are judged below
        f"log_path={logs}/log",
        "stack_trace_format='    #%n module=%m %f %S'",
    ]
    environment = {
        **os.environ,
        # The C++ library too: the sanitizer looks for its __cxa_throw when it starts.
        "LD_PRELOAD": f"{library(f'libclang_rt.asan-{platform.machine()}.so')} {library('libstdc++.so.6')}",
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": ":".join(options),
        "UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1",
        "THAW_BUILD": str(BUILD),
        "THAW_BINARY": str(BUILD / "bin" / "thaw"),
    }
    tests = [str(ROOT / "tests" / "python" / name) for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *sys.argv[1:], *tests]
    failed = subprocess.run(command, cwd=ROOT, env=environment).returncode != 0
    for path in sorted(logs.iterdir()):
        text = path.read_text(errors="replace")
        if "ERROR: AddressSanitizer" in text or "runtime error:" in text:
            print(text)
            failed = True
        leaks = re.findall(r"^(?:Direct|Indirect) leak of .*?(?=^\s*$)", text, re.MULTILINE | re.DOTALL)
        for leak in filter(is_ours, leaks):
            print(leak)
            failed = True
    if failed:
        sys.exit(f"the tests of the extension are not clean; what the sanitizer wrote is in {logs}")


if __name__ == "__main__":
    main()
