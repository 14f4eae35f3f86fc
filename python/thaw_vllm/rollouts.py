"""Several continuations of one prompt, written down for `thaw rewind`."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from thaw_vllm import _engine_checks as checks
from thaw_vllm import rewind
from thaw_vllm.errors import ForkError
from thaw_vllm.fork import ForkHandle


def _copy_of(params: Any) -> Any:
    clone = getattr(params, "clone", None)
    if callable(clone):
        return clone()
    import copy

    return copy.deepcopy(params)


def capture_rollouts(
    llm: Any,
    prompt: str | Sequence[int],
    sampling_params: Any,
    *,
    out_dir: str | os.PathLike[str],
    n: int | None = None,
    handle: ForkHandle | None = None,
    logprobs: int = 5,
    labels: Sequence[str] | None = None,
) -> list[str]:
    """Samples `n` continuations (else the parameters' own) and writes OUT_DIR/LABEL/rollout.json for each.

    Returns the paths, in order. `logprobs`: how many of the likeliest tokens are kept at each place.
    `handle` is hydrated first, and named as the rollouts' parent. Labels are rollout-0, rollout-1, ...
    unless given; ValueError unless there is one for each. ForkError where the engine gives fewer than n.
    """
    if handle is not None:
        handle.hydrate(llm)
    params = _copy_of(sampling_params)
    if isinstance(params, dict):
        params.update(logprobs=logprobs, **({} if n is None else {"n": n}))
        count = int(params.get("n", 1))
    else:
        params.logprobs = logprobs
        if n is not None:
            params.n = n
        count = int(getattr(params, "n", 1) or 1)
    names = [f"rollout-{i}" for i in range(count)] if labels is None else list(labels)
    if len(names) != count or len(set(map(rewind.safe_label, names))) != count:
        raise ValueError(f"{len(names)} labels for {count} rollouts; each needs one of its own")
    text = prompt if isinstance(prompt, str) else list(prompt)
    (output,) = llm.generate(text, params)
    if len(output.outputs) != count:
        raise ForkError(f"the engine gave {len(output.outputs)} of {count} rollouts")

    def value(name: str) -> Any:
        return params.get(name) if isinstance(params, dict) else getattr(params, name, None)

    sampling = {name: value(name) for name in ("temperature", "top_p", "top_k", "seed", "n")}
    paths = []
    for label, found in zip(names, output.outputs):
        record = rewind.build_rollout(
            model_id=checks.model_id(llm),
            prompt_token_ids=output.prompt_token_ids,
            tokens=rewind.extract_token_logprobs(found, max_topk=logprobs),
            parent_id=handle.handle_id if handle is not None else None,
            label=label,
            sampling=sampling,
            text=found.text,
        )
        paths.append(rewind.write_rollout(record, pathlib.Path(out_dir) / rewind.safe_label(label)))
    return paths
