"""Sampled continuations on disk (`rollout.json`): made, written, read and scored.

Logprobs are natural logarithms; a token without one is left out of the scores.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import re
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from thaw_common.format import replacing

from thaw_vllm._handle_files import read_small

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


def safe_label(label: str) -> str:
    """A label as the name of a directory: letters, digits, `-`, `_` and `.` stay."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip(".-") or "rollout"
