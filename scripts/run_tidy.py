#!/usr/bin/env python3
"""clang-tidy 19 over every source but the tests, where clang's warnings are errors of the sanitized builds.
Any finding fails.

Most of the time goes into the library's headers, once for every source. So sources of one folder that are
compiled alike are read as one (a file under build/tidy/groups includes them); where the names of two collide,
the group is parted. With a CUDA toolkit, the host half of the CUDA rooms is read as well.
"""

import concurrent.futures
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build/tidy"
GROUPS = BUILD / "groups"
GROUP_SIZE = 16
ROOMS = "(engine|kvsnap|forkpool|coalescer|cli|python)"


def configure() -> None:
    options = [
        "-DCMAKE_BUILD_TYPE=Debug",
        "-DCMAKE_CXX_COMPILER=clang++-19",
        "-UTHAW_CUDA",  # on where a toolkit is
        "-DTHAW_BENCH=OFF",
        "-DTHAW_TESTS=OFF",
    ]
    subprocess.run(
        ["cmake", "-S", ROOT, "-B", BUILD, "-G", "Ninja", *options], check=True, stdout=subprocess.DEVNULL
    )


def compiled() -> dict[str, list[str]]:
    """The repository's .cc files that the build folder compiles, each with its options."""
    listed = subprocess.run(["git", "ls-files", "*.cc"], cwd=ROOT, check=True, capture_output=True, text=True)
    known = set(listed.stdout.split())
    found: dict[str, list[str]] = {}
    for entry in json.loads((BUILD / "compile_commands.json").read_text()):
        name = os.path.relpath(entry["file"], ROOT)
        if name not in known or name in found:
            continue
        options = shlex.split(entry["command"])[1:]
        out = options.index("-o")
        del options[out : out + 2]
        found[name] = [option for option in options if option not in ("-c", entry["file"])]
    return found


def groups(files: dict[str, list[str]]) -> list[list[str]]:
    """Sources of one folder with the same options, at most GROUP_SIZE together. Tables of shapes stay
    alone, as in coalescer/CMakeLists.txt."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, options in sorted(files.items()):
        place = name if "/shapes_" in name else os.path.dirname(name)
        alike.setdefault((place, *options), []).append(name)
    return [names[i : i + GROUP_SIZE] for names in alike.values() for i in range(0, len(names), GROUP_SIZE)]


def as_one(names: list[str], options: list[str]) -> Path:
    """A source that includes `names`; where it is one, itself."""
    if len(names) == 1:
        return ROOT / names[0]
    digest = hashlib.sha256("\n".join(names + options).encode()).hexdigest()[:12]
    source = GROUPS / f"{digest}.cc"
    source.write_text("".join(f'#include "{ROOT / name}"\n' for name in names))
    return source


def run(command: list[str]) -> tuple[int, str]:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def parted(names: list[str], said: str) -> list[list[str]]:
    """`names` in groups without those that `said` finds colliding."""
    hurt = {
        os.path.relpath(path, ROOT)
        for path in re.findall(r"^(/[^:]+):\d+:\d+: error: .*\[clang-diagnostic-error\]$", said, re.MULTILINE)
    }
    hurt &= set(names)
    if not hurt or hurt == set(names):
        return [[name] for name in names]
    return [[name for name in names if name not in hurt], sorted(hurt)]


def check(names: list[str], options: list[str]) -> str:
    """What clang-tidy finds in `names`; empty: nothing. What does not compile alone, it tells as well."""
    checks = "-bugprone-suspicious-include" if len(names) > 1 else ""
    header_filter = f"--header-filter=^{ROOT}/{ROOMS}/.*\\.(h|cc)$"
    source = str(as_one(names, options))
    code, said = run(
        ["clang-tidy-19", "--quiet", f"--checks={checks}", header_filter, source, "--", *options]
    )
    if len(names) > 1 and "[clang-diagnostic-error]" in said:
        return "".join(check(group, options) for group in parted(names, said))
    return f"{' '.join(names)}:\n{said}" if code else ""


def main() -> int:
    configure()
    GROUPS.mkdir(exist_ok=True)
    files = compiled()
    jobs = [(names, files[names[0]]) for names in groups(files)]
    jobs.sort(key=lambda job: -len(job[0]))
    found = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as crew:
        running = [crew.submit(check, *job) for job in jobs]
        for number, job in enumerate(concurrent.futures.as_completed(running), 1):
            if job.result():
                found += 1
                print(job.result(), flush=True)
            if sys.stderr.isatty():
                print(f"\rclang-tidy: {number} of {len(jobs)} groups", end="", file=sys.stderr)
    print(f"clang-tidy: {len(jobs)} groups of sources, {found} with findings", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
