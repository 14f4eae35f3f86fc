#!/usr/bin/env python3
"""From which length on a trunk is restored sooner than prefilled, on the default model.

For each length: the time to the first token of a prompt that the server has never seen, and of the same
prompt after a restart, when its KV comes from a file of --spill-dir (written at shutdown). Both include the
last token's step. The crossover is where the lines through neighbouring lengths meet; no more than the
shortest length where the file is sooner there already.
"""

import argparse
import json
import statistics
import tempfile
import time
import urllib.request

from machine import describe_machine
from servers import thaw_server

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)


def prompt(length: int, seed: int) -> list[int]:
    return [(seed * 7919 + i * 104729) % 40000 + 100 for i in range(length + 1)]


def first_token(url: str, model: str, tokens: list[int]) -> tuple[float, int]:
    """(seconds, cached tokens)."""
    body = json.dumps({"model": model, "prompt": tokens, "max_tokens": 1, "temperature": 0}).encode()
    request = urllib.request.Request(url + "/v1/completions", body, {"Content-Type": "application/json"})
    started = time.perf_counter()
    with urllib.request.urlopen(request, timeout=300) as reply:
        answer = json.load(reply)
    took = time.perf_counter() - started
    return took, answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def crossing(rows: list[tuple[int, float, float]]) -> float | None:
    """The tokens from which on restoring is sooner at every length of `rows`; None where it never is."""
    gains = [(length, prefill - restore) for length, prefill, restore in rows]
    losing = [index for index, (_, gain) in enumerate(gains) if gain <= 0]
    if not losing:
        return gains[0][0]
    if losing[-1] == len(gains) - 1:
        return None
    (x0, y0), (x1, y1) = gains[losing[-1]], gains[losing[-1] + 1]
    return x0 - y0 * (x1 - x0) / (y1 - y0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--flags", default="", help="more flags of thaw serve, comma-separated")
    parser.add_argument("--output", help="JSON file to write")
    arguments = parser.parse_args()
    prefilled = {length: [] for length in LENGTHS}
    restored = {length: [] for length in LENGTHS}
    with tempfile.TemporaryDirectory(prefix="thaw-restore-") as folder:
        flags = ["--spill-dir", folder, "--fork-min-prefix-tokens", "16", "--arena-bytes", "1GiB"]
        flags += [flag for flag in arguments.flags.split(",") if flag]
        for run in range(arguments.runs):
            for table, is_restored in ((prefilled, False), (restored, True)):
                with thaw_server(*flags) as (url, model):
                    first_token(url, model, prompt(15, 999))  # the first step of all is slower
                    for length in LENGTHS:
                        took, cached = first_token(url, model, prompt(length, run * 100 + length))
                        expected = length if is_restored else 0
                        if cached != expected:
                            print(f"{length} tokens: {cached} cached, not {expected}: left out")
                            continue
                        table[length].append(took)
    rows = []
    for length in LENGTHS:
        if not prefilled[length] or not restored[length]:
            continue
        rows.append((length, statistics.median(prefilled[length]), statistics.median(restored[length])))
    print(f"{'tokens':>8} {'prefill ms':>11} {'restore ms':>11}")
    for length, prefill, restore in rows:
        print(f"{length:8} {prefill * 1e3:11.1f} {restore * 1e3:11.1f}")
    crossover = crossing(rows)
    print(f"restored sooner from {crossover:.0f} tokens on" if crossover else "never restored sooner")
    result = {
        "machine": describe_machine(),
        "runs": arguments.runs,
        "rows": [{"tokens": n, "prefill_s": p, "restore_s": r} for n, p, r in rows],
        "crossover_tokens": crossover,
    }
    if arguments.output:
        with open(arguments.output, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
