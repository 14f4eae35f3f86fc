#!/usr/bin/env python3
"""From which length on a trunk is restored sooner than prefilled, on the default model.

For each length: the time to the first token of a prompt that the server has never seen, and of the same
prompt after a restart, when its KV comes from a file of --spill-dir (written at shutdown). Both include the
last token's step. The crossover is where the lines that fit both meet.
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


def fit(points: list[tuple[int, float]]) -> tuple[float, float]:
    """(seconds at zero, seconds a token)."""
    mean_x = statistics.mean(x for x, _ in points)
    mean_y = statistics.mean(y for _, y in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    return mean_y - slope * mean_x, slope


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
    (a, b), (c, d) = fit([row[:2] for row in rows]), fit([(row[0], row[2]) for row in rows])
    crossover = max(0.0, (c - a) / (b - d)) if b > d else None
    print(f"prefill {1 / b:.0f} tokens/s; restore {1 / d:.0f} tokens/s; crossover: {crossover} tokens")
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
