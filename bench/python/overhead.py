#!/usr/bin/env python3
"""What a warm one-token call costs above the engine's own time, through ChatThaw and through ChatOpenAI.

The engine's own time is the same request as bytes on a bare socket: in process, and over TCP. All ways take
turns, so that what else the machine does falls on all of them; after them comes thaw-vllm's coalescer alone,
over an engine that costs nothing. Prints a table and writes a JSON file.
"""

import argparse
import asyncio
import json
import os
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("THAW_BUILD", ROOT / "build" / "release"))
sys.path[:0] = [str(BUILD / "python"), str(ROOT / "bench" / "e2e")]

from langchain_core.messages import HumanMessage  # noqa: E402
from langchain_openai import ChatOpenAI  # noqa: E402
from machine import describe_machine  # noqa: E402
from thaw_vllm.langgraph import ChatThaw  # noqa: E402

PROMPT = "Say hello."


class BareSocket:
    """One request, the same bytes again and again."""

    def __init__(self, sock: socket.socket, body: dict) -> None:
        self.sock = sock
        data = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
        self.request = head.encode() + data

    def call(self) -> None:
        self.sock.sendall(self.request)
        answer = b""
        while True:
            answer += self.sock.recv(65536)
            head, found, body = answer.partition(b"\r\n\r\n")
            if found and len(body) >= int(re.search(rb"(?i)content-length: (\d+)", head)[1]):
                assert answer.startswith(b"HTTP/1.1 200"), answer
                return


def measure(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 20):
        for name, call in ways.items():
            began = time.perf_counter()
            call()
            if number >= 20:  # the first ones are warm-up
                times[name].append((time.perf_counter() - began) * 1e3)
    return times


def summary(times: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(times, n=100)
    return {"p50_ms": round(cuts[49], 3), "p90_ms": round(cuts[89], 3), "p99_ms": round(cuts[98], 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default=str(BUILD / "testdata" / "tiny-q4_1.gguf"))
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--output", type=pathlib.Path, help="JSON file")
    arguments = parser.parse_args()

    flags = ["--port", "0", "--threads", "1", "--log-level", "warn"]
    command = [BUILD / "bin" / "thaw", "serve", arguments.model, *flags]
    server = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    try:
        url = next(m[1] for line in server.stdout if (m := re.search(r"at (http://\S+)", line)))
        result = run(arguments, url)
    finally:
        server.terminate()
        server.wait(30)
    own = {"in process": "bare socket, in process", "over HTTP": "bare socket, over HTTP"}
    print(f"{'way':40} {'p50':>8} {'p90':>8} {'p99':>8}   above its bare socket, p50")
    for name, row in result["ways"].items():
        base = next((bare for place, bare in own.items() if name.endswith(place)), "")
        row["above_ms"] = round(row["p50_ms"] - (result["ways"][base]["p50_ms"] if base else 0), 3)
        shown = " ".join(f"{row[part]:8.3f}" for part in ("p50_ms", "p90_ms", "p99_ms"))
        print(f"{name:40} {shown}   {row['above_ms']:.3f} ms")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def run(arguments: argparse.Namespace, url: str) -> dict:
    fields = {"temperature": 0, "max_tokens": 1}
    here = ChatThaw(model=arguments.model, extra_llm_kwargs={"threads": 1}, **fields)
    there = ChatThaw(model="default", base_url=url, **fields)
    peer = ChatOpenAI(
        model=here.invoke(PROMPT).response_metadata["model_name"], base_url=url, api_key="x", **fields
    )
    body = {"messages": [{"role": "user", "content": PROMPT}], "top_p": 1.0, "n": 1, **fields}
    host, port = re.search(r"//(.*):(\d+)", url).groups()
    inner = BareSocket(socket.socket(fileno=here._engine.connect()), body)
    outer = BareSocket(socket.create_connection((host, int(port))), body)
    outer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    loop = asyncio.new_event_loop()
    times = measure(
        {
            "bare socket, in process": inner.call,
            "ChatThaw.invoke, in process": lambda: here.invoke(PROMPT),
            "ChatThaw.ainvoke, in process": lambda: loop.run_until_complete(here.ainvoke(PROMPT)),
            "ChatThaw._generate, in process": lambda: here._generate([HumanMessage(PROMPT)]),
            "bare socket, over HTTP": outer.call,
            "ChatThaw.invoke, over HTTP": lambda: there.invoke(PROMPT),
            "ChatOpenAI.invoke, over HTTP": lambda: peer.invoke(PROMPT),
            "ChatOpenAI.ainvoke, over HTTP": lambda: loop.run_until_complete(peer.ainvoke(PROMPT)),
        },
        arguments.rounds,
    )
    loop.close()
    command = [
        sys.executable,
        str(ROOT / "bench" / "python" / "peer_coalescer.py"),
        "--rounds",
        str(arguments.rounds),
    ]
    coalescer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    times[f"thaw-vllm {coalescer['version']}'s coalescer, no engine"] = coalescer["times_ms"]
    return {
        "what": "a warm call of one token",
        "model": pathlib.Path(arguments.model).name,
        "rounds": arguments.rounds,
        "machine": describe_machine(),
        "ways": {name: summary(values) for name, values in times.items()},
    }


if __name__ == "__main__":
    main()
