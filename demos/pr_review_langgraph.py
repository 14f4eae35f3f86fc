#!/usr/bin/env python3
"""Four reviewers over one pull request: what a fork saves.

A LangGraph graph fans out with Send() into four reviewers that share one context of some 2,500 tokens (a
real diff and the code it touches), through LangChain's ChatOpenAI, streaming. Three ways of sending the
same work:

  thaw              context first, the reviewer's task last: the context is prefilled once
  baseline          the same, but nothing may be shared: every branch prefills the context
  specialist-first  each reviewer's own system prompt before the context, as many people write it

Without --base-url it starts a thaw server on a free port, and ends it.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import operator
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from typing import Annotated, TypedDict

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = pathlib.Path(__file__).resolve().parent / "data"
MODES = ("thaw", "baseline", "specialist-first")
REVIEWERS = {
    "security": "Look for ways in which input from a client could crash or mislead this code.",
    "performance": "Look for copies, allocations and loops that cost more than they need to.",
    "style": "Look for names, comments and structure that a newcomer would not understand.",
    "correctness": "Look for cases in which this code computes something wrong.",
}


@dataclasses.dataclass
class Branch:
    """One reviewer's run, filled while it streams."""

    name: str
    started: float = 0.0
    first_token: float | None = None
    text: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0

    @property
    def ttft(self) -> float:
        return (self.first_token or time.perf_counter()) - self.started


@dataclasses.dataclass
class Round:
    """One fan-out in one mode."""

    mode: str
    branches: list[Branch]
    wall_seconds: float
    prefilled_tokens: int | None  # from the server's metrics; None where it is not thaw


class ReviewState(TypedDict):
    context: str
    reviews: Annotated[list[str], operator.add]


class Server:
    """An OpenAI-compatible server; thaw's own endpoints are used where it has them."""

    def __init__(self, base_url: str):
        self.base_url = base_url.rstrip("/")
        self.root = self.base_url.removesuffix("/v1")
        models = self.get("/v1/models", {})
        self.is_thaw = any(m.get("owned_by") == "thaw" for m in models.get("data", []))

    def get(self, path: str, default):
        try:
            with urllib.request.urlopen(self.root + path, timeout=5) as reply:
                body = reply.read().decode()
        except (OSError, urllib.error.URLError):
            return default
        try:
            return json.loads(body)
        except json.JSONDecodeError:
            return body

    def model_name(self) -> str:
        models = self.get("/v1/models", None)
        if not models:
            sys.exit(f"no model list at {self.base_url}/models: is a server running there?")
        return models["data"][0]["id"]

    def prefilled_tokens(self) -> int | None:
        text = self.get("/metrics", "") if self.is_thaw else ""
        found = re.findall(r"^thaw_tokens_prefilled_total(?:{[^}]*})? (\S+)$", str(text), re.M)
        return int(sum(float(value) for value in found)) if found else None


@contextlib.contextmanager
def own_server():
    """Starts the server that was built here on a free port; yields its base URL."""
    binary = ROOT / "build" / "release" / "bin" / "thaw"
    if not binary.exists():
        sys.exit(f"{binary} is not built; run `make build`")
    environment = dict(os.environ, THAW_LOG_LEVEL=os.environ.get("THAW_LOG_LEVEL", "warn"))
    process = subprocess.Popen(
        [str(binary), "serve", "--port", "0"], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        for line in process.stdout:
            found = re.search(r"(http://\S+/v1)\b", line)
            if found:
                break
        else:
            sys.exit(f"the server ended with status {process.wait(timeout=10)}")
        root = found.group(1).removesuffix("/v1")
        deadline = time.monotonic() + 60
        while Server(root).get("/health", None) is None:
            if time.monotonic() > deadline or process.poll() is not None:
                sys.exit("the server did not become healthy within 60 s")
            time.sleep(0.02)
        yield found.group(1)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()


def shared_context() -> str:
    return (
        "You review one pull request.\n\nThe change:\n\n"
        + (DATA / "change.diff").read_text()
        + "\nThe code it touches:\n\n"
        + (DATA / "code.txt").read_text()
    )


def messages_for(mode: str, name: str, context: str) -> list:
    task = f"You are the {name} reviewer. {REVIEWERS[name]} Answer in a few short points."
    if mode == "specialist-first":
        return [SystemMessage(task), HumanMessage(context + "\nReview this change.")]
    return [SystemMessage(context), HumanMessage(task)]


def model_for(server: Server, model: str, mode: str, run: str, name: str, args) -> ChatOpenAI:
    salt = f"{run}-{name}" if mode == "baseline" else run
    return ChatOpenAI(
        model=model,
        base_url=server.base_url,
        api_key=args.api_key,
        temperature=0,
        max_tokens=args.max_tokens,
        stream_usage=True,
        max_retries=0,
        extra_body={"cache_salt": salt} if server.is_thaw else None,
    )


def build_graph(server: Server, model: str, mode: str, branches: dict[str, Branch], args):
    """plan -> Send() -> one review node a reviewer -> end."""
    run = uuid.uuid4().hex[:8]

    def fan_out(state: ReviewState):
        return [Send("review", {"name": name, "context": state["context"]}) for name in REVIEWERS]

    async def review(task: dict):
        branch = branches[task["name"]]
        context = task["context"]
        if not server.is_thaw:  # another server: a first line of its own keeps rounds apart
            salt = f"{run}-{branch.name}" if mode == "baseline" else run
            context = f"[{salt}]\n{context}"
        chat = model_for(server, model, mode, run, branch.name, args)
        branch.started = time.perf_counter()
        async for chunk in chat.astream(messages_for(mode, branch.name, context)):
            if chunk.text:
                if branch.first_token is None:
                    branch.first_token = time.perf_counter()
                branch.text += chunk.text
            if chunk.usage_metadata:
                usage = chunk.usage_metadata
                branch.prompt_tokens = usage["input_tokens"]
                branch.cached_tokens = usage.get("input_token_details", {}).get("cache_read", 0)
        return {"reviews": [branch.text]}

    graph = StateGraph(ReviewState)
    graph.add_node("plan", lambda state: {"reviews": []})
    graph.add_node("review", review)
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", fan_out, ["review"])
    graph.add_edge("review", END)
    return graph.compile()


def panels(mode: str, branches: dict[str, Branch], width: int) -> Columns:
    columns = max(1, min(4, width // 34))
    panel_width = width // columns - 1
    items = []
    for branch in branches.values():
        tail = "\n".join(branch.text.strip().splitlines()[-10:]) or "..."
        title = branch.name
        if branch.first_token is not None:
            title += f"  first token {branch.ttft:.2f} s"
        items.append(Panel(tail[-600:], title=title, width=panel_width, height=12))
    return Columns(items, title=f"--mode {mode}")


async def run_round(server: Server, model: str, mode: str, console: Console, args) -> Round:
    branches = {name: Branch(name) for name in REVIEWERS}
    graph = build_graph(server, model, mode, branches, args)
    before = server.prefilled_tokens()
    started = time.perf_counter()
    task = asyncio.create_task(graph.ainvoke({"context": shared_context(), "reviews": []}))
    if console.is_terminal:
        with Live(console=console, refresh_per_second=12, transient=False) as live:
            while not task.done():
                live.update(panels(mode, branches, console.width))
                await asyncio.wait([task], timeout=0.08)
            live.update(panels(mode, branches, console.width))
    await task
    wall = time.perf_counter() - started
    after = server.prefilled_tokens()
    prefilled = after - before if before is not None and after is not None else None
    if not console.is_terminal:
        for branch in branches.values():
            line = " ".join(branch.text.split())
            print(f"[{mode}] {branch.name}: first token {branch.ttft:.2f} s: {line[:100]}")
    return Round(mode, list(branches.values()), wall, prefilled)


def summary(rounds: list[Round]) -> Table:
    table = Table(title="One context, four reviewers")
    table.add_column("mode")
    for title in ("wall s", "first token s (each branch)", "prompt tokens", "cached", "prefilled", "speed"):
        table.add_column(title, justify="right")
    reference = next((r for r in rounds if r.mode == "baseline"), None)
    for item in rounds:
        prompt = sum(branch.prompt_tokens for branch in item.branches)
        cached = sum(branch.cached_tokens for branch in item.branches)
        prefilled = item.prefilled_tokens if item.prefilled_tokens is not None else prompt - cached
        ratio = f"{reference.wall_seconds / item.wall_seconds:.1f} x" if reference else "-"
        table.add_row(
            item.mode,
            f"{item.wall_seconds:.2f}",
            " ".join(f"{branch.ttft:.2f}" for branch in item.branches),
            str(prompt),
            str(cached),
            str(prefilled),
            ratio,
        )
    return table


def explain_last_window(server: Server, console: Console) -> None:
    """Prints why the branches of the last round did not share."""
    recent = server.get("/v1/forks/recent", None) if server.is_thaw else None
    if not recent:
        return
    requests = [request for window in recent["windows"] for request in window["requests"]]
    parted = [request for request in requests if (request.get("parted") or {}).get("advice")]
    if parted:
        where = parted[0]["parted"]
        console.print("\nWhy specialist-first shares so little, as thaw explains it:", highlight=False)
        console.print(
            f"  after token {where['position']} one prompt has {where['text_here'][:40]!r}, "
            f"another {where['text_other'][:40]!r}.",
            highlight=False,
            markup=False,
        )
        console.print(f"  {where['advice']}", highlight=False, markup=False)


async def main_async(server: Server, args) -> None:
    console = Console()
    model = server.model_name()
    modes = MODES if args.mode == "all" else (args.mode,)
    rounds = []
    for mode in modes:
        rounds.append(await run_round(server, model, mode, console, args))
    console.print(summary(rounds))
    if "specialist-first" in modes:
        explain_last_window(server, console)
    if args.json:
        pathlib.Path(args.json).write_text(
            json.dumps([dataclasses.asdict(item) for item in rounds], indent=1)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mode", choices=(*MODES, "all"), default="all")
    parser.add_argument("--base-url", help="an OpenAI-compatible server, such as http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--json", help="also write the rounds to this file")
    args = parser.parse_args()
    context = contextlib.nullcontext(args.base_url) if args.base_url else own_server()
    with context as base_url:
        asyncio.run(main_async(Server(base_url), args))


if __name__ == "__main__":
    main()
