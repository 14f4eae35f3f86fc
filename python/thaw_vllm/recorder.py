"""The shapes of batches, step by step, without a token's content: enough to run the same shapes again.

thaw's own answers do not depend on them (docs/exactness.md): traces are for engines whose do.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from thaw_common.format import replacing

PathLike = str | os.PathLike[str]
TRACE_VERSION = 1
#: In place of the tokens computed before a step, where they are not known.
UNKNOWN = -1


def req_id_matches(recorded: str, wanted: str) -> bool:
    """Whether a step's request id is that of the request `wanted`: engines add `-SUFFIX` to it."""
    return recorded == wanted or recorded.startswith(wanted + "-")


@dataclasses.dataclass
class ShapeTrace:
    """Steps of an engine. Each is {"reqs": {request id: [tokens in this step, computed before]}, "total"}.

    `req_meta` has each request's {"prompt_len"} in tokens; `header` is the caller's.
    """

    header: dict[str, Any] = dataclasses.field(default_factory=dict)
    req_meta: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    steps: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def note_request(self, req_id: str, prompt_len: int) -> None:
        """A request begins, with a prompt of so many tokens."""
        self.req_meta[req_id] = {"prompt_len": int(prompt_len)}

    def add_step(self, reqs: Mapping[str, Sequence[int]], total: int) -> None:
        """One more step; the second number of a request may be -1. ValueError for a step of nothing."""
        if not reqs or any(len(pair) != 2 or pair[0] < 1 for pair in reqs.values()):
            raise ValueError(
                f"a step of {dict(reqs)}; each request has [tokens, computed before], tokens above 0"
            )
        pairs = {str(name): [int(pair[0]), int(pair[1])] for name, pair in reqs.items()}
        self.steps.append({"reqs": pairs, "total": int(total)})

    def steps_for(self, req_id: str) -> list[dict[str, Any]]:
        """The steps that it was in."""
        return [step for step in self.steps if any(req_id_matches(name, req_id) for name in step["reqs"])]

    def num_sampled(self, req_id: str) -> int:
        """Tokens generated for it: a step that reaches the end of the prompt gives one, as do later ones.

        Where computed counts are unknown, steps of a single token are counted.
        """
        known = next((m for name, m in self.req_meta.items() if req_id_matches(name, req_id)), None)
        sampled = 0
        for step in self.steps:
            for name, (tokens, computed) in step["reqs"].items():
                if not req_id_matches(name, req_id):
                    continue
                if computed == UNKNOWN or known is None:
                    sampled += tokens == 1
                else:
                    sampled += computed + tokens >= known["prompt_len"]
        return sampled

    def dummy_spec(self, exclude: Collection[str] = ()) -> list[dict[str, Any]]:
        """The others as {req_id, prompt_len, num_sampled}: what to run beside one to repeat its shapes."""
        return [
            {"req_id": name, "prompt_len": meta["prompt_len"], "num_sampled": self.num_sampled(name)}
            for name, meta in self.req_meta.items()
            if not any(req_id_matches(name, one) for one in exclude)
        ]

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {"version": TRACE_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ShapeTrace:
        """to_dict() back. ValueError for another version, or for steps that cannot be."""
        if fields.get("version") != TRACE_VERSION:
            raise ValueError(f"version is {fields.get('version')!r}; supported is {TRACE_VERSION}")
        trace = cls(header=dict(fields.get("header") or {}))
        for name, meta in (fields.get("req_meta") or {}).items():
            trace.req_meta[str(name)] = dict(meta)
        for step in fields.get("steps") or []:
            trace.add_step(step["reqs"], step["total"])
        return trace

    def _encoded(self) -> bytes:
        return json.dumps(self.to_dict(), separators=(",", ":")).encode()

    def save(self, path: PathLike) -> int:
        """Writes it, whole or not at all; its bytes."""
        data = self._encoded()
        with replacing(path) as f:
            f.write(data)
        return len(data)

    @classmethod
    def load(cls, path: PathLike) -> ShapeTrace:
        """Reads what save() wrote."""
        return cls.from_dict(json.loads(pathlib.Path(path).read_bytes()))

    def certificate_bytes(self) -> int:
        """How many bytes save() writes."""
        return len(self._encoded())


def shape_signature(trace: ShapeTrace, target: str | None = None) -> list[tuple[tuple[int, ...], ...]]:
    """Of each step the shapes of its requests, whatever their ids; those of `target` are marked.

    Two traces with the same signature ran the same shapes.
    """
    signature: list[tuple[tuple[int, ...], ...]] = []
    for step in trace.steps:
        shapes = []
        for name, (tokens, computed) in step["reqs"].items():
            mark = int(target is not None and req_id_matches(name, target))
            shapes.append((mark, tokens, computed))
        signature.append(tuple(sorted(shapes)))
    return signature


class Recorder:
    """Notes an engine's steps between start() and stop().

    Of an engine whose scheduler is in this process (vLLM's) every step as it is scheduled. thaw's engine
    steps in processes of their own and batches as it likes: there each call is noted as the steps that its
    tokens take alone. RuntimeError for any other engine.
    """

    def __init__(self, llm: Any):
        self.trace = ShapeTrace()
        self._lock = threading.Lock()
        self._is_recording = False
        self._scheduler = None
        core = getattr(getattr(llm, "llm_engine", None), "engine_core", None)
        for owner in (getattr(core, "engine_core", None), core):
            self._scheduler = self._scheduler or getattr(owner, "scheduler", None)
        self._target = self._scheduler or (llm if callable(getattr(llm, "generate_each", None)) else None)
        if self._target is None:
            raise RuntimeError(
                "the engine's scheduler is not in this process; VLLM_ENABLE_V1_MULTIPROCESSING=0 before it "
                "starts puts it here"
            )

    def start(self) -> Recorder:
        """Begins. RuntimeError where it has begun."""
        if self._is_recording:
            raise RuntimeError("the recorder has started already")
        self._is_recording = True
        if self._scheduler is not None:
            schedule = self._scheduler.schedule

            def recording_schedule(*args: Any, **keywords: Any) -> Any:
                output = schedule(*args, **keywords)
                with self._lock:
                    self._note_step(output)
                return output

            self._scheduler.schedule = recording_schedule
            return self
        generate = self._target.generate  # type: ignore[union-attr]

        def recording_generate(*args: Any, **keywords: Any) -> Any:
            outputs = generate(*args, **keywords)
            with self._lock:
                for output in outputs:
                    self._note_output(output)
            return outputs

        self._target.generate = recording_generate  # type: ignore[union-attr]
        return self

    def stop(self) -> ShapeTrace:
        """Ends, and returns what was noted. May be called twice."""
        if self._is_recording:
            self._is_recording = False
            delattr(self._target, "schedule" if self._scheduler is not None else "generate")
        return self.trace

    def __enter__(self) -> Recorder:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _note_step(self, output: Any) -> None:
        """A scheduler's output, by vLLM's names."""
        tokens = dict(getattr(output, "num_scheduled_tokens", None) or {})
        if not tokens:
            return
        computed: dict[str, int] = {}
        for new in getattr(output, "scheduled_new_reqs", None) or []:
            computed[new.req_id] = int(new.num_computed_tokens)
            self.trace.note_request(new.req_id, len(new.prompt_token_ids or []))
        cached = getattr(output, "scheduled_cached_reqs", None)
        if cached is not None:
            computed.update(zip(cached.req_ids, map(int, cached.num_computed_tokens)))
        reqs = {name: [count, computed.get(name, UNKNOWN)] for name, count in tokens.items()}
        self.trace.add_step(reqs, int(output.total_num_scheduled_tokens))

    def _note_output(self, output: Any) -> None:
        name, prompt = str(output.request_id), len(output.prompt_token_ids)
        self.trace.note_request(name, prompt)
        self.trace.add_step({name: [prompt, 0]}, prompt)
        for done in range(max(len(choice.token_ids) for choice in output.outputs) - 1):
            self.trace.add_step({name: [1, prompt + done]}, 1)
