"""Sampled continuations on disk (`rollout.json`): how likely they were, where they part, and what decided.

The same facts and numbers as of `thaw rewind`. Logprobs are natural logarithms; a token without one
is left out of the scores.
"""

from __future__ import annotations

from thaw_vllm._rollout import (
    ROLLOUT_FILENAME,
    ROLLOUT_VERSION,
    PathLike,
    build_rollout,
    extract_token_logprobs,
    find_rollouts,
    safe_label,
    summarize_rollout,
    write_rollout,
)
from thaw_vllm._rollout_diff import _first_divergence, compare_rollouts, diff_rollouts, number
from thaw_vllm._rollout_drift import _drift_stats, drift_report, drift_stats
from thaw_vllm._rollout_pivots import pivot_rollouts, trace_rollouts
from thaw_vllm._text import clipped, counted, printable, table, utc_time

__all__ = [
    "ROLLOUT_FILENAME",
    "ROLLOUT_VERSION",
    "_drift_stats",  # scripts written for thaw-vllm import these two
    "_first_divergence",
    "build_rollout",
    "compare_rollouts",
    "diff_rollouts",
    "drift_report",
    "drift_stats",
    "extract_token_logprobs",
    "find_rollouts",
    "inspect_rollout",
    "pivot_rollouts",
    "safe_label",
    "summarize_rollout",
    "trace_rollouts",
    "write_rollout",
]


def inspect_rollout(path: PathLike) -> str:
    """What `thaw rewind inspect` shows."""
    found = summarize_rollout(path)
    rows = [("model", printable(found["model_id"]))]
    if found["rollout_id"]:
        rows.append(("id", printable(found["rollout_id"][:12])))
    if found.get("parent_id"):
        rows.append(("forked from", printable(found["parent_id"][:12])))
    rows.append(("trunk", counted(found["prompt_tokens"], "prompt token")))
    rows.append(("generated", counted(found["n_tokens"], "token")))
    if found["seq_logprob"] is None:
        rows.append(("logprobs", "not captured"))
    else:
        rows.append(("seq logprob", number(found["seq_logprob"])))
        rows.append(("mean logprob", number(found["mean_logprob"], 3)))
        rows.append(("perplexity", number(found["perplexity"])))
    sampling = found["sampling"]
    keys = ("temperature", "top_p", "top_k", "seed", "n")
    told = [f"{key} {sampling[key]}" for key in keys if sampling.get(key) is not None]
    rows.append(("sampling", printable(", ".join(told)) or "unknown"))
    if found["created_at"] > 0:
        rows.append(("created", utc_time(found["created_at"])))
    if found["text"]:
        rows.append(("text", f'"{clipped(found["text"], 220)}"'))
    return f"rollout {printable(found['name'])}\n" + table(rows, "  ")
