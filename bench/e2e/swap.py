#!/usr/bin/env python3
"""How long a slot takes to change hands, and what it costs the first request.

Two models on one slot, asked for in turn. `swap_s` is from the decision until the other model serves;
`first_token_s` what a client sees, with the linger, the swap and a prefill of 16 tokens. The ceiling is what
the swap has to move: on a GPU the weights, at the rate of a pinned copy (--copy-gb-s, as thaw_kv_copies_bench
measures it); on the CPU nothing at all, so that the start of a worker is left (start.py measures one).
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time
import urllib.request

from machine import describe_machine
from start import Server, default_model


def spread(values: list[float]) -> dict:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(args) -> dict:
    first, second = args.first or str(default_model()), args.second or str(default_model())
    flags = ["--register", f"other={second}", "--served-model-name", "first", "--device", args.device]
    flags += ["--kv-bytes", args.kv_bytes, "--arena-bytes", args.arena_bytes, "--log-level", "warn"]
    with tempfile.TemporaryDirectory() as folder:
        server = Server(args.cache or folder, *flags, model=first)
        try:
            swaps, first_tokens, bytes_moved = [], [], 0
            for number in range(2 * args.rounds + 2):
                name = ("other", "first")[number % 2]
                began = time.perf_counter()
                body = {"model": name, "prompt": list(range(5, 21)), "max_tokens": 1}
                assert server.get("/v1/completions", body) == 200
                took = time.perf_counter() - began
                with urllib.request.urlopen(server.url + "/admin/pool", timeout=60) as reply:
                    pool = json.load(reply)
                bytes_moved = max(model["weight_bytes"] for model in pool["models"])
                if number < 2:
                    continue  # the page cache and the image cache are warm afterwards
                swaps.append(pool["slots"][0]["last_swap_seconds"])
                first_tokens.append(took)
        finally:
            server.end()
    result = {
        "device": args.device,
        "weight_bytes": bytes_moved,
        "swap_s": spread(swaps),
        "first_token_s": spread(first_tokens),
        "rounds": args.rounds,
    }
    if args.device != "cpu":
        result["ceiling_s"] = bytes_moved / args.copy_gb_s * 1e-9
        result["share_of_ceiling"] = result["ceiling_s"] / result["swap_s"]["median"]
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--first", help="model; the default one without it")
    parser.add_argument("--second", help="the other; the default one once more without it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kv-bytes", default="1GiB")
    parser.add_argument("--arena-bytes", default="256MiB")
    parser.add_argument("--cache", help="folder for packed weights; a new one without it")
    parser.add_argument("--copy-gb-s", type=float, default=55.0)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", type=pathlib.Path)
    args = parser.parse_args()
    result = {"command": " ".join(sys.argv), "machine": describe_machine(), "swap": measure(args)}
    text = json.dumps(result, indent=1)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
