"""Fork rounds over HTTP against any OpenAI-compatible server: N branches at once over one long prefix."""

import dataclasses
import http.client
import json
import pathlib
import threading
import time
import urllib.parse
import uuid

ROOT = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass
class BranchTime:
    """One branch: seconds to its first text and to its end, and what the server says it cost."""

    ttft_s: float
    total_s: float
    completion_tokens: int
    cached_tokens: int


@dataclasses.dataclass
class RoundTime:
    wall_s: float
    branches: list[BranchTime]


def trunk_text(num_characters: int = 5700) -> str:
    """Real code and prose, about 2,000 tokens of the default model at the default length."""
    text = "".join((ROOT / "demos" / "data" / name).read_text() for name in ("change.diff", "code.txt"))
    while len(text) < num_characters:
        text += text
    return text[:num_characters]


def suffix(index: int) -> str:
    topics = ("security", "performance", "style", "correctness", "tests", "naming", "errors", "docs")
    return f"\n\nReview number {index}, about {topics[index % len(topics)]}:\n"


def stream_branch(base_url: str, body: dict) -> BranchTime:
    """One streaming completion, timed."""
    url = urllib.parse.urlsplit(base_url)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=600)
    data = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}})
    started = time.perf_counter()
    connection.request("POST", "/v1/completions", data, {"Content-Type": "application/json"})
    reply = connection.getresponse()
    if reply.status != 200:
        raise RuntimeError(f"{base_url}: {reply.status} {reply.read()[:300]}")
    first = None
    usage: dict = {}
    for raw in reply:
        if not raw.startswith(b"data: {"):
            continue
        frame = json.loads(raw[6:])
        if first is None and any(choice.get("text") for choice in frame.get("choices", [])):
            first = time.perf_counter()
        usage = frame.get("usage") or usage
    ended = time.perf_counter()
    connection.close()
    details = usage.get("prompt_tokens_details") or {}
    return BranchTime(
        ttft_s=(first or ended) - started,
        total_s=ended - started,
        completion_tokens=usage.get("completion_tokens", 0),
        cached_tokens=details.get("cached_tokens", 0),
    )


def run_round(base_url: str, model: str, prompts: list[str], max_tokens: int, extras=None) -> RoundTime:
    """All prompts at once, each in a thread of its own. `extras[i]` is merged into body i."""
    results: list = [None] * len(prompts)

    def run(index: int) -> None:
        body = {
            "model": model,
            "prompt": prompts[index],
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            **((extras or {}).get(index, {})),
        }
        results[index] = stream_branch(base_url, body)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(prompts))]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - started
    if any(result is None for result in results):
        raise RuntimeError("a branch failed")
    return RoundTime(wall, results)


def fresh_trunk() -> str:
    """A trunk that no server has seen: the first line is new."""
    return f"Document {uuid.uuid4().hex}\n" + trunk_text()
