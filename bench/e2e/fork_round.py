#!/usr/bin/env python3
"""Fork rounds on the default model: thaw against the same server with sharing off (a salt a branch).

Prints a table and writes JSON with the machine described. Every figure is the median of --rounds rounds.
"""

import argparse
import json
import pathlib
import statistics
import sys

from machine import describe_machine
from rounds import fresh_trunk, run_round, suffix
from servers import thaw_server


def measure(url: str, model: str, branches: int, max_tokens: int, rounds: int) -> dict:
    walls: dict[str, list[float]] = {"cold": [], "warm": [], "primed": [], "not_shared": []}
    for index in range(rounds):
        trunk = fresh_trunk()
        prompts = [trunk + suffix(i) for i in range(2 * branches)]
        cold = run_round(url, model, prompts[:branches], max_tokens)
        warm = run_round(url, model, prompts[branches:], max_tokens)
        primed_trunk = fresh_trunk()
        run_round(url, model, [primed_trunk], 1)
        primed = run_round(url, model, [primed_trunk + suffix(i) for i in range(branches)], max_tokens)
        salts = {i: {"cache_salt": f"{index}-{i}"} for i in range(branches)}
        apart = run_round(url, model, prompts[:branches], max_tokens, salts)
        for name, result in (("cold", cold), ("warm", warm), ("primed", primed), ("not_shared", apart)):
            walls[name].append(result.wall_s)
    medians = {name: statistics.median(values) for name, values in walls.items()}
    return {
        "branches": branches,
        "max_tokens": max_tokens,
        "median_s": medians,
        "all_s": walls,
        "cold_speedup_over_not_shared": medians["not_shared"] / medians["cold"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--branches", type=int, nargs="*", default=[4, 8])
    parser.add_argument("--device", default="cpu", help="what thaw serve runs on: cpu, cuda, cuda:N")
    args = parser.parse_args()
    results = []
    with thaw_server("--device", args.device) as (url, model):
        run_round(url, model, ["warm up"], 4)
        for branches in args.branches:
            results.append(measure(url, model, branches, 64, args.rounds))
    print(f"{'branches x tokens':>18} {'cold s':>8} {'warm s':>8} {'primed s':>9} ", end="")
    print(f"{'not shared s':>13} {'gain':>7}")
    for result in results:
        median = result["median_s"]
        print(
            f"{result['branches']:>13} x 64 {median['cold']:>8.2f} {median['warm']:>8.2f} "
            f"{median['primed']:>9.2f} {median['not_shared']:>13.2f} "
            f"{result['cold_speedup_over_not_shared']:>6.1f}x"
        )
    if args.output:
        document = {"machine": describe_machine(), "command": sys.argv, "results": results}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(document, indent=1) + "\n")
        print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
