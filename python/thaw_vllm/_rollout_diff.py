"""Where two rollouts part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thaw_vllm._rollout import PathLike, summarize_rollout
from thaw_vllm._text import clipped, counted, printable, table


def number(value: float | None, digits: int = 2) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


def token_text(token: Mapping[str, Any] | None) -> str:
    if token is None:
        return "its end"
    return f'"{clipped(token["text"], 40)}"' if token.get("text") else f"<{token['token_id']}>"


def _first_divergence(a: Sequence[Any], b: Sequence[Any]) -> int | None:
    """The first place at which two lists of tokens (or ids) differ; None where none does.

    Where one is the beginning of the other that is its length.
    """

    def token_id(token: Any) -> Any:
        return token["token_id"] if isinstance(token, Mapping) else token

    for index, (left, right) in enumerate(zip(a, b)):
        if token_id(left) != token_id(right):
            return index
    return None if len(a) == len(b) else min(len(a), len(b))


def common_tokens(a: Mapping[str, Any], b: Mapping[str, Any]) -> int:
    at = _first_divergence(a["tokens"], b["tokens"])
    return len(a["tokens"]) if at is None else at


def text_before(record: Mapping[str, Any], position: int) -> str:
    return "".join(token["text"] or "" for token in record["tokens"][max(0, position - 12) : position])


def choice_of(token: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if token is None else {key: token.get(key) for key in ("token_id", "text", "logprob")}


def _ranked(place: Mapping[str, Any], token_id: int) -> dict[str, Any] | None:
    for rank, entry in enumerate(place["topk"]):
        if entry.get("token_id") == token_id:
            return {"rank": rank + 1, "logprob": entry["logprob"]}
    return None


def report_of(found: Mapping[str, Any]) -> dict[str, Any]:
    keys = (
        "name", "path", "rollout_id", "parent_id", "label", "model_id", "fork_index", "prompt_tokens",
        "n_tokens", "n_scored", "seq_logprob", "mean_logprob", "perplexity", "sampling", "created_at",
    )  # fmt: skip
    return {key: found.get(key) for key in keys}


def compare_rollouts(a: PathLike, b: PathLike) -> dict[str, Any]:
    """Where two rollouts part: the object of `thaw rewind diff --json`."""
    return _compare(summarize_rollout(a), summarize_rollout(b))


def _compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    at = common_tokens(a, b)
    prompt_a, prompt_b = a["prompt_token_ids"], b["prompt_token_ids"]
    shared_prompt = _first_divergence(prompt_a, prompt_b)
    pivot = None
    if at < min(len(a["tokens"]), len(b["tokens"])):
        of_a, of_b = a["tokens"][at], b["tokens"][at]
        b_in_a, a_in_b = _ranked(of_a, of_b["token_id"]), _ranked(of_b, of_a["token_id"])
        margin = None
        if of_a["logprob"] is not None and b_in_a and b_in_a["logprob"] is not None:
            margin = of_a["logprob"] - b_in_a["logprob"]
        pivot = {
            "position": at,
            "text_before": text_before(a, at),
            "a": choice_of(of_a),
            "b": choice_of(of_b),
            "b_in_a": b_in_a,
            "a_in_b": a_in_b,
            "margin": margin,
        }
    return {
        "a": report_of(a),
        "b": report_of(b),
        "same_model": a["model_id"] == b["model_id"],
        "same_prompt": prompt_a == prompt_b,
        "shared_prompt_tokens": len(prompt_a) if shared_prompt is None else shared_prompt,
        "shared_tokens": at,
        "pivot": pivot,
    }


def verdict(margin: float) -> str:
    size = abs(margin)
    return "a close call" if size < 1 else "a confident split" if size < 3 else "a decisive split"


def diff_rollouts(a: PathLike, b: PathLike) -> str:
    """What `thaw rewind diff` shows."""
    left, right = summarize_rollout(a), summarize_rollout(b)
    found = _compare(left, right)
    sides = []
    for letter, side in (("A", left), ("B", right)):
        row = [letter, printable(side["name"]), printable(side["rollout_id"][:12])]
        row.append(counted(side["n_tokens"], "token"))
        if side["seq_logprob"] is None:
            row.append("no logprobs")
        else:
            row += [
                f"seq logprob {number(side['seq_logprob'])}",
                f"perplexity {number(side['perplexity'])}",
            ]
        sides.append(row)
    model_a, model_b = printable(left["model_id"]), printable(right["model_id"])
    trunk = counted(left["prompt_tokens"], "prompt token")
    if not found["same_prompt"]:
        trunk = f"differ: the first {counted(found['shared_prompt_tokens'], 'prompt token')} are the same"
    rows = [
        ("model", f"same, {model_a}" if found["same_model"] else f"differ: A {model_a}, B {model_b}"),
        ("trunk", f"same, {trunk}" if found["same_prompt"] else trunk),
    ]
    if left["seq_logprob"] is not None and right["seq_logprob"] is not None:
        gap = left["seq_logprob"] - right["seq_logprob"]
        likelier = f"{'A' if gap > 0 else 'B'} by {number(abs(gap))}" if gap else "neither"
        rows.append(("likelier", likelier))
    pivot, at = found["pivot"], found["shared_tokens"]
    if pivot is None:
        more = abs(left["n_tokens"] - right["n_tokens"])
        longer = "A" if left["n_tokens"] > right["n_tokens"] else "B"
        rows.append(("pivot", f"none: {longer} goes on for {counted(more, 'token')}" if more else
                     "none: the same tokens"))  # fmt: skip
        return table(sides) + "\n" + table(rows, "  ")
    rows.append(("pivot", f"generated token {at:,}, after {counted(at, 'token')} that are the same"))
    for label, token, other, ranked in (
        ("A took", pivot["a"], "B", pivot["a_in_b"]),
        ("B took", pivot["b"], "A", pivot["b_in_a"]),
    ):
        line = f"{token_text(token)}, logprob {number(token['logprob'])}"
        if ranked:
            line += f"; {other} had it at rank {ranked['rank']}, logprob {number(ranked['logprob'])}"
        rows.append((label, line))
    if pivot["margin"] is not None:
        margin = pivot["margin"]
        who = "its own token was likelier" if margin >= 0 else "though its own token was less likely"
        rows.append(("decided", f"to A, {who} by {number(abs(margin))}: {verdict(margin)}"))
    out = table(sides) + "\n" + table(rows, "  ")
    after = ["".join(t["text"] or "" for t in side["tokens"][at : at + 60]) for side in (left, right)]
    if pivot["text_before"] or any(after):
        out += f'\n  both "{clipped(pivot["text_before"], 72, keep_end=True)}"\n'
        out += f'  A    "{clipped(after[0], 72)}"\n  B    "{clipped(after[1], 72)}"\n'
    return out
