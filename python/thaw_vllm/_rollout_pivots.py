"""Where many rollouts of one prompt part, and what decided for the likeliest."""

from __future__ import annotations

import os
import pathlib
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from thaw_vllm._rollout import PathLike, find_rollouts, summarize_rollout
from thaw_vllm._rollout_diff import (
    choice_of,
    common_tokens,
    number,
    report_of,
    text_before,
    token_text,
    verdict,
)
from thaw_vllm._text import clipped, counted, printable, table


def _rank(group: Sequence[Mapping[str, Any]]) -> list[int]:
    """Likeliest first; those without logprobs at the end."""

    def key(index: int) -> tuple[bool, float, int]:
        score = group[index]["seq_logprob"]
        return score is None, 0.0 if score is None else -score, index

    return sorted(range(len(group)), key=key)


def _pivots(group: Sequence[Mapping[str, Any]], ranking: Sequence[int]) -> list[dict[str, Any]]:
    """The places where members part; options name members by index, likeliest first."""

    def choice(member: int, position: int) -> Mapping[str, Any] | None:
        tokens = group[member]["tokens"]
        return tokens[position] if position < len(tokens) else None

    def token_id(member: int, position: int) -> int | None:
        token = choice(member, position)
        return None if token is None else token["token_id"]

    pivots: list[dict[str, Any]] = []
    waiting: deque[tuple[list[int], int, dict[str, Any] | None]] = deque([(list(ranking), 0, None)])
    while waiting:
        members, position, leads_here = waiting.popleft()
        if len(members) < 2:
            continue
        length = len(group[members[0]]["tokens"])
        while position < length and len({token_id(member, position) for member in members}) == 1:
            position += 1
        if len({token_id(member, position) for member in members}) == 1:
            continue  # they end together
        options: list[dict[str, Any]] = []
        for member in members:
            token = choice(member, position)
            same = next(
                (o for o in options if (o["token"] or {}).get("token_id") == token_id(member, position)), None
            )
            if same is None:
                same = {"token": choice_of(token), "members": [], "next_pivot": None}
                options.append(same)
            same["members"].append(member)
        if leads_here is not None:
            leads_here["next_pivot"] = len(pivots)
        for option in options:
            if option["token"] is not None:
                waiting.append((option["members"], position + 1, option))
        pivots.append({"position": position, "options": options})
    return pivots


def _decision(group: Sequence[Mapping[str, Any]], ranking: Sequence[int]) -> dict[str, Any] | None:
    if len(ranking) < 2:
        return None
    best, runner_up = group[ranking[0]], group[ranking[1]]
    if best["seq_logprob"] is None or runner_up["seq_logprob"] is None:
        return None
    at = common_tokens(best, runner_up)
    if at == len(best["tokens"]) and at == len(runner_up["tokens"]):
        return None
    tokens = [side["tokens"][at] if at < len(side["tokens"]) else None for side in (best, runner_up)]
    margin = None
    logprobs = [token["logprob"] if token else None for token in tokens]
    if logprobs[0] is not None and logprobs[1] is not None:
        margin = logprobs[0] - logprobs[1]
    return {
        "position": at,
        "best": best["name"],
        "token": choice_of(tokens[0]),
        "runner_up": runner_up["name"],
        "runner_up_token": choice_of(tokens[1]),
        "margin": margin,
    }


def trace_rollouts(root: PathLike) -> dict[str, Any]:
    """Where the rollouts in a directory part: the object of `thaw rewind pivot --json`."""
    groups: list[list[dict[str, Any]]] = []
    unread = []
    for path in find_rollouts(root):
        try:
            found = summarize_rollout(path)
        except (OSError, ValueError) as error:
            if path == pathlib.Path(root):
                raise
            unread.append({"path": str(path), "reason": str(error)})
            continue
        for group in groups:
            first = group[0]
            if all(first[key] == found[key] for key in ("model_id", "prompt_token_ids")):
                group.append(found)
                break
        else:
            groups.append([found])
    reports = []
    for group in groups:
        ranking = _rank(group)
        pivots = []
        for pivot in _pivots(group, ranking):
            options = [
                {
                    "token": option["token"],
                    "rollouts": [group[member]["name"] for member in option["members"]],
                    "next_pivot": option["next_pivot"],
                }
                for option in pivot["options"]
            ]
            likeliest = group[pivot["options"][0]["members"][0]]
            before = text_before(likeliest, pivot["position"])
            pivots.append({"position": pivot["position"], "text_before": before, "options": options})
        best = group[ranking[0]]
        reports.append(
            {
                "model_id": group[0]["model_id"],
                "prompt_tokens": group[0]["prompt_tokens"],
                "rollouts": [report_of(group[member]) for member in ranking],
                "pivots": pivots,
                "best": best["name"] if best["seq_logprob"] is not None else None,
                "decided_by": _decision(group, ranking),
            }
        )
    return {"root": os.fspath(root), "groups": reports, "unread": unread}


def pivot_rollouts(root: PathLike) -> str:
    """What `thaw rewind pivot` shows: the tree of places at which rollouts of one prompt part."""
    report = trace_rollouts(root)
    if not report["groups"] and not report["unread"]:
        return f"no rollouts in {os.fspath(root)}\n"
    shown = [_group_text(group) for group in report["groups"]]
    return "\n".join(shown) + "".join(f"not read: {printable(e['reason'])}\n" for e in report["unread"])


def _group_text(group: Mapping[str, Any]) -> str:
    rollouts = {entry["name"]: entry for entry in group["rollouts"]}
    out = f"{counted(len(group['rollouts']), 'rollout')}, trunk of {counted(group['prompt_tokens'], 'token')}"
    out += f", {printable(group['model_id'])}\n"
    if len(group["rollouts"]) < 2:
        return out + "  a pivot takes two rollouts of one prompt\n"
    rows: list[tuple[str, ...]] = []

    def add(index: int, prefix: str, below: str) -> None:
        pivot = group["pivots"][index]
        before = (
            f' after "{clipped(pivot["text_before"], 32, keep_end=True)}"' if pivot["text_before"] else ""
        )
        rows.append((f"{prefix}token {pivot['position']:,}{before}", "", ""))
        for place, option in enumerate(pivot["options"]):
            last = place == len(pivot["options"]) - 1
            token = option["token"]
            told = "(ends)" if token is None else f"{token_text(token)} {number(token['logprob'])}"
            scores = ", ".join(number(rollouts[name]["seq_logprob"]) for name in option["rollouts"])
            names = clipped(", ".join(option["rollouts"]), 60)
            rows.append((below + ("`- " if last else "|- ") + told, names, f"seq logprob {scores}"))
            if option["next_pivot"] is not None:
                inner = below + ("   " if last else "|  ")
                add(option["next_pivot"], inner + "`- ", inner + "   ")

    if group["pivots"]:
        out += f"  first divergence at generated token {group['pivots'][0]['position']:,}\n"
        add(0, "", "")
        out += table(rows, "  ")
    else:
        out += f"  no divergence: the same {counted(group['rollouts'][0]['n_tokens'], 'token')}\n"
    if group["best"] is None:
        return out + "  no ranking: the rollouts carry no logprobs\n"
    best = group["rollouts"][0]
    out += f"  best branch: {printable(best['name'])} (seq logprob {number(best['seq_logprob'])}, "
    out += f"perplexity {number(best['perplexity'])})\n"
    decided = group["decided_by"]
    if decided:
        out += f"  decided by token {decided['position']:,}: {token_text(decided['token'])} over "
        out += f"{token_text(decided['runner_up_token'])} of {printable(decided['runner_up'])}"
        if decided["margin"] is not None:
            out += f", by {number(decided['margin'])} in logprob: {verdict(decided['margin'])}"
        out += "\n"
    return out
