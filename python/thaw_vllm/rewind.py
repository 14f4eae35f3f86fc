"""Sampled continuations on disk (`rollout.json`): how likely they were, where they part, and what decided.

The same facts and numbers as of `thaw rewind`. Logprobs are natural logarithms; a token without one
is left out of the scores.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import re
import time
import uuid
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from thaw_common.format import replacing

from thaw_vllm._handle_files import read_small
from thaw_vllm._text import clipped, counted, printable, table, utc_time

ROLLOUT_FILENAME = "rollout.json"
ROLLOUT_VERSION = 1
PathLike = str | os.PathLike[str]


def _finite(value: Any) -> float | None:
    if value is None or isinstance(value, bool):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def extract_token_logprobs(completion_output: Any, max_topk: int = 5) -> list[dict[str, Any]]:
    """The tokens of an output (`.token_ids`, `.logprobs`) as a rollout has them.

    Each is {token_id, text, logprob, topk}; `topk` has at most `max_topk` entries, likeliest first.
    """
    ids = list(completion_output.token_ids)
    places: Sequence[Mapping[int, Any] | None] = completion_output.logprobs or []
    tokens = []
    for index, token_id in enumerate(ids):
        place = (places[index] if index < len(places) else None) or {}
        choices = [
            {
                "token_id": int(other),
                "text": getattr(entry, "decoded_token", None),
                "logprob": _finite(getattr(entry, "logprob", entry if isinstance(entry, float) else None)),
            }
            for other, entry in place.items()
        ]
        choices.sort(key=lambda choice: -math.inf if choice["logprob"] is None else choice["logprob"])
        choices.reverse()
        chosen = next((choice for choice in choices if choice["token_id"] == token_id), None)
        tokens.append(
            {
                "token_id": int(token_id),
                "text": chosen["text"] if chosen else None,
                "logprob": chosen["logprob"] if chosen else None,
                "topk": choices[:max_topk],
            }
        )
    return tokens


def build_rollout(
    *,
    model_id: str,
    prompt_token_ids: Iterable[int],
    tokens: Iterable[Mapping[str, Any]],
    fork_index: int | None = None,
    parent_id: str | None = None,
    label: str | None = None,
    sampling: Mapping[str, Any] | None = None,
    text: str | None = None,
    rollout_id: str | None = None,
    created_at: float | None = None,
) -> dict[str, Any]:
    """A record as rollout.json holds it. `fork_index` is where generation began, else the prompt's end."""
    prompt = [int(token) for token in prompt_token_ids]
    listed = [dict(token) for token in tokens]
    return {
        "version": ROLLOUT_VERSION,
        "rollout_id": rollout_id or uuid.uuid4().hex,
        "parent_id": parent_id,
        "label": label,
        "model_id": model_id,
        "prompt_token_ids": prompt,
        "fork_index": len(prompt) if fork_index is None else int(fork_index),
        "sampling": dict(sampling or {}),
        "text": "".join(token.get("text") or "" for token in listed) if text is None else text,
        "tokens": listed,
        "created_at": time.time() if created_at is None else float(created_at),
    }


def write_rollout(record: Mapping[str, Any], target_dir: PathLike) -> str:
    """Writes target_dir/rollout.json, whole or not at all, and returns its path."""
    folder = pathlib.Path(target_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ROLLOUT_FILENAME
    with replacing(path) as f:
        f.write(json.dumps(record, indent=2, allow_nan=False).encode() + b"\n")
    return str(path)


def _read(path: PathLike) -> dict[str, Any]:
    whole = pathlib.Path(path)
    file = whole / ROLLOUT_FILENAME if whole.is_dir() else whole
    try:
        record = json.loads(read_small(file), parse_constant=lambda name: None)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"{path} is no rollout: it is a directory that holds {ROLLOUT_FILENAME}, or that file"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: {ROLLOUT_FILENAME}: it is no JSON object ({error})") from None
    if not isinstance(record, dict):
        raise ValueError(f"{path}: {ROLLOUT_FILENAME}: it is no JSON object")
    if record.get("version") != ROLLOUT_VERSION:
        raise ValueError(
            f"{path}: {ROLLOUT_FILENAME}: version {record.get('version')!r}; supported is {ROLLOUT_VERSION}"
        )
    tokens = record.get("tokens")
    if not isinstance(record.get("model_id"), str) or not isinstance(tokens, list):
        raise ValueError(f"{path}: {ROLLOUT_FILENAME}: model_id or tokens are missing")
    for index, token in enumerate(tokens):
        if not isinstance(token, dict) or not isinstance(token.get("token_id"), int):
            raise ValueError(f"{path}: {ROLLOUT_FILENAME}: token {index} has no token_id")
        token["logprob"] = _finite(token.get("logprob"))
        token.setdefault("text", None)
        token["topk"] = [dict(entry) for entry in token.get("topk") or []]
        for entry in token["topk"]:
            entry["logprob"] = _finite(entry.get("logprob"))
    record["prompt_token_ids"] = list(record.get("prompt_token_ids") or [])
    record.setdefault("fork_index", len(record["prompt_token_ids"]))
    for key, empty in (("rollout_id", ""), ("text", ""), ("created_at", 0.0), ("sampling", {})):
        if record.get(key) is None:
            record[key] = empty
    return record


def _scores(record: Mapping[str, Any]) -> dict[str, Any]:
    scored = [token["logprob"] for token in record["tokens"] if token["logprob"] is not None]
    total = 0.0
    for logprob in scored:  # in order, as the command line sums them
        total += logprob
    mean = total / len(scored) if scored else None
    return {
        "n_tokens": len(record["tokens"]),
        "n_scored": len(scored),
        "seq_logprob": total if scored else None,
        "mean_logprob": mean,
        "perplexity": math.exp(-mean) if mean is not None else None,
    }


def _name(path: PathLike, record: Mapping[str, Any]) -> str:
    if record.get("label"):
        return str(record["label"])
    whole = pathlib.Path(os.path.normpath(pathlib.Path(path).absolute()))
    return whole.parent.name if whole.name == ROLLOUT_FILENAME else whole.name


def summarize_rollout(path: PathLike) -> dict[str, Any]:
    """The record, and `name`, `path`, `prompt_tokens`, `n_tokens`, `n_scored`, `seq_logprob`,
    `mean_logprob`, `perplexity` (None where no token has a logprob)."""
    record = _read(path)
    extra = {"name": _name(path, record), "path": os.fspath(path)}
    return {**record, **extra, "prompt_tokens": len(record["prompt_token_ids"]), **_scores(record)}


def _number(value: float | None, digits: int = 2) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


def _token_text(token: Mapping[str, Any] | None) -> str:
    if token is None:
        return "its end"
    return f'"{clipped(token["text"], 40)}"' if token.get("text") else f"<{token['token_id']}>"


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
        rows.append(("seq logprob", _number(found["seq_logprob"])))
        rows.append(("mean logprob", _number(found["mean_logprob"], 3)))
        rows.append(("perplexity", _number(found["perplexity"])))
    sampling = found["sampling"]
    keys = ("temperature", "top_p", "top_k", "seed", "n")
    told = [f"{key} {sampling[key]}" for key in keys if sampling.get(key) is not None]
    rows.append(("sampling", printable(", ".join(told)) or "unknown"))
    if found["created_at"] > 0:
        rows.append(("created", utc_time(found["created_at"])))
    if found["text"]:
        rows.append(("text", f'"{clipped(found["text"], 220)}"'))
    return f"rollout {printable(found['name'])}\n" + table(rows, "  ")


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


def _common_tokens(a: Mapping[str, Any], b: Mapping[str, Any]) -> int:
    at = _first_divergence(a["tokens"], b["tokens"])
    return len(a["tokens"]) if at is None else at


def _text_before(record: Mapping[str, Any], position: int) -> str:
    return "".join(token["text"] or "" for token in record["tokens"][max(0, position - 12) : position])


def _choice(token: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if token is None else {key: token.get(key) for key in ("token_id", "text", "logprob")}


def _ranked(place: Mapping[str, Any], token_id: int) -> dict[str, Any] | None:
    for rank, entry in enumerate(place["topk"]):
        if entry.get("token_id") == token_id:
            return {"rank": rank + 1, "logprob": entry["logprob"]}
    return None


def _report(found: Mapping[str, Any]) -> dict[str, Any]:
    keys = (
        "name", "path", "rollout_id", "parent_id", "label", "model_id", "fork_index", "prompt_tokens",
        "n_tokens", "n_scored", "seq_logprob", "mean_logprob", "perplexity", "sampling", "created_at",
    )  # fmt: skip
    return {key: found.get(key) for key in keys}


def compare_rollouts(a: PathLike, b: PathLike) -> dict[str, Any]:
    """Where two rollouts part: the object of `thaw rewind diff --json`."""
    return _compare(summarize_rollout(a), summarize_rollout(b))


def _compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    at = _common_tokens(a, b)
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
            "text_before": _text_before(a, at),
            "a": _choice(of_a),
            "b": _choice(of_b),
            "b_in_a": b_in_a,
            "a_in_b": a_in_b,
            "margin": margin,
        }
    return {
        "a": _report(a),
        "b": _report(b),
        "same_model": a["model_id"] == b["model_id"],
        "same_prompt": prompt_a == prompt_b,
        "shared_prompt_tokens": len(prompt_a) if shared_prompt is None else shared_prompt,
        "shared_tokens": at,
        "pivot": pivot,
    }


def _verdict(margin: float) -> str:
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
                f"seq logprob {_number(side['seq_logprob'])}",
                f"perplexity {_number(side['perplexity'])}",
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
        likelier = f"{'A' if gap > 0 else 'B'} by {_number(abs(gap))}" if gap else "neither"
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
        line = f"{_token_text(token)}, logprob {_number(token['logprob'])}"
        if ranked:
            line += f"; {other} had it at rank {ranked['rank']}, logprob {_number(ranked['logprob'])}"
        rows.append((label, line))
    if pivot["margin"] is not None:
        margin = pivot["margin"]
        who = "its own token was likelier" if margin >= 0 else "though its own token was less likely"
        rows.append(("decided", f"to A, {who} by {_number(abs(margin))}: {_verdict(margin)}"))
    out = table(sides) + "\n" + table(rows, "  ")
    after = ["".join(t["text"] or "" for t in side["tokens"][at : at + 60]) for side in (left, right)]
    if pivot["text_before"] or any(after):
        out += f'\n  both "{clipped(pivot["text_before"], 72, keep_end=True)}"\n'
        out += f'  A    "{clipped(after[0], 72)}"\n  B    "{clipped(after[1], 72)}"\n'
    return out


def find_rollouts(root: PathLike) -> list[pathlib.Path]:
    """The rollouts in a directory: itself where it is one, else those one level below, by name."""
    folder = pathlib.Path(root)
    if not folder.exists():
        raise FileNotFoundError(f"{root}: no such directory")
    if not folder.is_dir() or (folder / ROLLOUT_FILENAME).exists():
        return [folder]
    found = [
        entry
        for entry in folder.iterdir()
        if not entry.is_symlink() and entry.is_dir() and (entry / ROLLOUT_FILENAME).exists()
    ]
    return sorted(found, key=str)


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
                same = {"token": _choice(token), "members": [], "next_pivot": None}
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
    at = _common_tokens(best, runner_up)
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
        "token": _choice(tokens[0]),
        "runner_up": runner_up["name"],
        "runner_up_token": _choice(tokens[1]),
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
            before = _text_before(likeliest, pivot["position"])
            pivots.append({"position": pivot["position"], "text_before": before, "options": options})
        best = group[ranking[0]]
        reports.append(
            {
                "model_id": group[0]["model_id"],
                "prompt_tokens": group[0]["prompt_tokens"],
                "rollouts": [_report(group[member]) for member in ranking],
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

    def add(number: int, prefix: str, below: str) -> None:
        pivot = group["pivots"][number]
        before = (
            f' after "{clipped(pivot["text_before"], 32, keep_end=True)}"' if pivot["text_before"] else ""
        )
        rows.append((f"{prefix}token {pivot['position']:,}{before}", "", ""))
        for place, option in enumerate(pivot["options"]):
            last = place == len(pivot["options"]) - 1
            token = option["token"]
            told = "(ends)" if token is None else f"{_token_text(token)} {_number(token['logprob'])}"
            scores = ", ".join(_number(rollouts[name]["seq_logprob"]) for name in option["rollouts"])
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
    out += f"  best branch: {printable(best['name'])} (seq logprob {_number(best['seq_logprob'])}, "
    out += f"perplexity {_number(best['perplexity'])})\n"
    decided = group["decided_by"]
    if decided:
        out += f"  decided by token {decided['position']:,}: {_token_text(decided['token'])} over "
        out += f"{_token_text(decided['runner_up_token'])} of {printable(decided['runner_up'])}"
        if decided["margin"] is not None:
            out += f", by {_number(decided['margin'])} in logprob: {_verdict(decided['margin'])}"
        out += "\n"
    return out


def _sign(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    return (value > 0) - (value < 0)


def _drift_stats(result: Mapping[str, Any], name: str = "") -> dict[str, Any] | None:
    """How often re-feeding a prefix flips an advantage's sign; None where no pivot has an advantage."""
    pivots = result.get("pivots")
    if not isinstance(pivots, list) or not all(isinstance(pivot, dict) for pivot in pivots):
        raise ValueError("it is no JSON object with a list of pivots")
    config = result.get("config")
    configured = config.get("name") if isinstance(config, dict) else None
    eligible = refeed = floor = phantom = greedy_refeed = greedy_floor = 0
    for pivot in pivots:
        greedy_refeed += bool(pivot.get("greedy_divergence_refeed"))
        greedy_floor += bool(pivot.get("greedy_divergence_exact2"))
        exact, again, fed = (_sign(pivot.get(key)) for key in ("A_exact1", "A_exact2", "A_refeed"))
        if not (exact or again or fed):
            continue
        eligible += 1
        refeed += exact != fed
        floor += exact != again
        phantom += exact != fed and exact == again
    if not eligible:
        return None
    experiment = result.get("experiment")
    return {
        "name": configured if isinstance(configured, str) and configured else name,
        "experiment": experiment if isinstance(experiment, str) else "",
        "n_pivots": len(pivots),
        "n_eligible": eligible,
        "refeed_flips": refeed,
        "floor_flips": floor,
        "refeed_rate": refeed / eligible,
        "floor_rate": floor / eligible,
        "excess_pp": (refeed / eligible - floor / eligible) * 100,
        "phantom": phantom,
        "gdiv_refeed_rate": greedy_refeed / len(pivots),
        "gdiv_floor_rate": greedy_floor / len(pivots),
    }


def drift_stats(path: PathLike) -> dict[str, Any]:
    """What an experiment's results say, or a directory's: the object of `thaw rewind drift --json`."""
    whole = pathlib.Path(path)
    if not whole.exists():
        raise FileNotFoundError(f"{path}: no such file")
    listed = sorted(whole.glob("*.json"), key=str) if whole.is_dir() else [whole]
    results = []
    for file in listed:
        try:
            parsed = json.loads(read_small(file))
            found = _drift_stats(parsed if isinstance(parsed, dict) else {}, file.stem)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        if found:
            results.append(found)
    results.sort(key=lambda one: (-one["excess_pp"], one["name"]))
    return {"results": results}


def drift_report(path: PathLike) -> str:
    """What `thaw rewind drift` shows, of one result or of a directory of them."""
    results = drift_stats(path)["results"]
    if not results:
        return f"no pivots with an advantage in {os.fspath(path)}\n"

    def percent(part: float) -> str:
        return f"{part * 100:.1f} %"

    if len(results) > 1:
        rows = [("config", "eligible", "re-fed", "floor", "excess")]
        for one in results:
            rates = percent(one["refeed_rate"]), percent(one["floor_rate"])
            excess = f"{one['excess_pp']:+.1f} points"
            rows.append((clipped(one["name"], 40), f"{one['n_eligible']:,}", *rates, excess))
        return table(rows)
    one = results[0]
    head = f"drift of {printable(one['name'])}"
    head += f", {printable(one['experiment'])}" if one["experiment"] else ""
    head += f": {counted(one['n_pivots'], 'pivot')}, {one['n_eligible']:,} with an advantage\n\n"
    rows2 = [
        ("re-fed", f"{percent(one['refeed_rate'])}, {one['refeed_flips']:,} of {one['n_eligible']:,}"),
        ("resumed", f"{percent(one['floor_rate'])}, {one['floor_flips']:,} of {one['n_eligible']:,} (floor)"),
        ("excess", f"{one['excess_pp']:+.1f} points above the floor"),
        ("phantom", f"{counted(one['phantom'], 'pivot')} flip when re-fed, but not when resumed"),
        ("greedy", f"the first token differs at {percent(one['gdiv_refeed_rate'])} of the pivots re-fed, "
                   f"{percent(one['gdiv_floor_rate'])} resumed"),
    ]  # fmt: skip
    return head + "  flips of its sign against an exact resume\n" + table(rows2, "  ")


def safe_label(label: str) -> str:
    """A label as the name of a directory: letters, digits, `-`, `_` and `.` stay."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip(".-") or "rollout"
