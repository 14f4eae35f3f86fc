#!/usr/bin/env python3
"""How long thaw-vllm's own coalescer keeps a lone call, over an engine that costs nothing.

Prints the milliseconds of each call as JSON. The package comes from PyPI into bench/scratch, never committed,
and this runs as a process of its own: its `thaw_vllm` is not ours.
"""

import argparse
import asyncio
import json
import pathlib
import subprocess
import sys
import time

SCRATCH = pathlib.Path(__file__).resolve().parents[1] / "scratch"
VERSION = "0.6.0"
WARM_UP = 20


def package() -> pathlib.Path:
    """The folder to import the package from, without its dependencies: its coalescer has none."""
    folder = SCRATCH / f"thaw-vllm-{VERSION}"
    if not (folder / "thaw_vllm").is_dir():
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--disable-pip-version-check",
        ]
        subprocess.run([*command, "--target", str(folder), f"thaw-vllm=={VERSION}"], check=True)
    return folder


async def calls(rounds: int) -> list[float]:
    """Milliseconds of each of `rounds` calls, one after the other, with the defaults of its ChatThaw."""
    from thaw_vllm.langgraph import ForkCoalescer

    async def single(messages: object, sampling_params: object) -> str:
        return "one"

    async def fork(prefix: object, suffixes: list, sampling_params: object) -> list[str]:
        return ["one"] * len(suffixes)

    coalescer = ForkCoalescer(fork_callable=fork, single_callable=single)
    messages = [{"role": "user", "content": "Say hello."}]
    times = []
    for _ in range(rounds + WARM_UP):
        began = time.perf_counter()
        await coalescer.submit(messages, None)
        times.append((time.perf_counter() - began) * 1e3)
    return times[WARM_UP:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    arguments = parser.parse_args()
    sys.path.insert(0, str(package()))
    print(json.dumps({"version": VERSION, "times_ms": asyncio.run(calls(arguments.rounds))}))


if __name__ == "__main__":
    main()
