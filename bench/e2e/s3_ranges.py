#!/usr/bin/env python3
"""What fetching an object of S3 as ranges at once gains, where each connection is slow and far away.

A 200 MB container lies in moto's server, a process on this machine, behind a proxy that caps every connection
at 20 MB/s and answers 20 ms late. (It keeps the object in memory: moto copies all of it for each range.)
Compared are one plain GET, and what `thaw serve --snapshot s3://...` does before it reads the file, with 1, 8
and 32 connections (THAW_S3_CONCURRENCY). Medians and spread; writes bench/results/s3_ranges.json.
"""

import argparse
import json
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests" / "e2e"))

import s3_server
import thaw_container
from machine import ROOT, describe_machine

MIB = 1 << 20
REGIONS = 191  # of 1 MiB: 200 MB
BYTES_PER_SECOND = 20e6
DELAY_S = 0.02


def container() -> bytes:
    noise = random.Random(1).randbytes(MIB)
    checksum = thaw_container.crc32c(noise)
    header = thaw_container.MAGIC + (2).to_bytes(4, "little") + REGIONS.to_bytes(8, "little")
    header += thaw_container.PAGE.to_bytes(8, "little")
    start = thaw_container.PAGE * 3  # behind a table of 191 entries
    table = b"".join(
        thaw_container.ENTRY.pack(0, i, MIB, start + i * MIB, checksum, 0) for i in range(REGIONS)
    )
    return (
        header.ljust(thaw_container.PAGE, b"\0")
        + table.ljust(2 * thaw_container.PAGE, b"\0")
        + noise * REGIONS
    )


def plain_get(proxy) -> float:
    started = time.monotonic()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(f"{proxy.url}/models/large.thaw", headers=s3_server.SOMEBODY)
    with opener.open(request) as reply:
        while reply.read(MIB):
            pass
    return time.monotonic() - started


def fetch(thaw: pathlib.Path, proxy, connections: int) -> float:
    with tempfile.TemporaryDirectory() as cache:
        env = {
            **s3_server.clean_environment(),
            **s3_server.CREDENTIALS,
            "AWS_ENDPOINT_URL": proxy.url,
            "THAW_CACHE_DIR": cache,
            "THAW_S3_CONCURRENCY": str(connections),
        }
        started = time.monotonic()
        command = [str(thaw), "serve", "--snapshot", "s3://models/large.thaw"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        took = time.monotonic() - started
        # Noise is no model: it is refused once it is here.
        assert "no metadata" in done.stderr, done.stderr
        return took


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--thaw", type=pathlib.Path, default=ROOT / "build" / "release" / "bin" / "thaw")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "bench" / "results" / "s3_ranges.json")
    options = parser.parse_args()

    server = s3_server.S3Server()
    proxy = s3_server.Proxy(server)
    try:
        body = container()
        server.make_bucket("models")
        server.put("models", "large.thaw", body)
        proxy.bytes_per_second, proxy.delay_s, proxy.remembers = BYTES_PER_SECOND, DELAY_S, True
        measured = {"one plain GET": lambda: plain_get(proxy)}
        for connections in (1, 8, 32):
            measured[f"thaw, {connections} connections"] = lambda n=connections: fetch(options.thaw, proxy, n)
        results = {}
        for name, measure in measured.items():
            seconds = sorted(measure() for _ in range(options.runs))
            median = statistics.median(seconds)
            results[name] = {
                "seconds": round(median, 3),
                "spread": [round(seconds[0], 3), round(seconds[-1], 3)],
                "mb_per_s": round(len(body) / median / 1e6, 1),
            }
            print(f"{name:24} {median:7.2f} s  {len(body) / median / 1e6:7.1f} MB/s", flush=True)
        single = results["one plain GET"]["seconds"]
        for result in results.values():
            result["times_a_single_stream"] = round(single / result["seconds"], 2)
    finally:
        proxy.stop()
        server.stop()
    report = {
        "machine": describe_machine(),
        "command": "bench/e2e/s3_ranges.py",
        "bytes": len(body),
        "cap_bytes_per_second": BYTES_PER_SECOND,
        "delay_ms": DELAY_S * 1000,
        "runs": options.runs,
        "results": results,
    }
    options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
