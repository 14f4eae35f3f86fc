"""thaw's engine with the names of vLLM's `LLM`."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pathlib
import secrets
import shutil
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from thaw_common.cloud import is_remote, resolve_snapshot_path
from thaw_common.format import replacing

from thaw_vllm import _handle_files as files
from thaw_vllm._client import Client
from thaw_vllm._completions import completion_of, prompt_logprobs_of
from thaw_vllm._engine_facts import CacheConfig, LLMEngine, ModelConfig, ParallelConfig, VllmConfig
from thaw_vllm._engine_settings import engine_settings
from thaw_vllm._prompts import as_prompts
from thaw_vllm._tokenizer import Tokenizer
from thaw_vllm._transport import Endpoint, HttpEndpoint
from thaw_vllm.errors import ForkError
from thaw_vllm.outputs import RequestOutput
from thaw_vllm.sampling_params import SamplingParams, as_sampling_params, request_fields

PathLike = str | os.PathLike[str]
MAX_PARALLEL = 64
BLOCK_TOKENS = 16
_SESSION_TTL_S = 24 * 3600
#: Of a worker on the same model, besides its memory: they decide bits, or where it runs.
_SAME_IN_WORKERS = ("kv_dtype", "dtype", "quantize", "max_model_len", "device", "isa", "threads", "kv_bytes")


class LLM:
    """A model that completes prompts: in processes that this object starts and ends, or on a thaw server.

    `model` is what `thaw serve` takes: a GGUF file, a directory, a .thaw file (also s3://), `org/name`;
    without one the default model. Other arguments are vLLM's, or flags of `thaw serve` with underscores
    (`workers=2`, `kv_bytes="512MiB"`, `device="cuda"`); those of vLLM's that mean nothing here are accepted
    with a warning, unknown ones are a ValueError. `base_url` and `api_key` name a server instead, whose
    model is used; `session_dir` is then that server's --session-dir, where it is on this machine.
    `timeout_s` is the deadline of a call. Safe for threads. close() it, or use it in a `with`; it ends with
    the interpreter in any case.
    """

    def __init__(
        self,
        model: str = "",
        *,
        enable_prefix_caching: bool = True,
        base_url: str | None = None,
        api_key: str | None = None,
        session_dir: PathLike | None = None,
        timeout_s: float = 3600.0,
        seed: int | None = None,
        **settings: Any,
    ):
        if timeout_s <= 0:
            raise ValueError(f"timeout_s is {timeout_s}; it must be above 0")
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._running = 0
        self._last_token_ids: list[int] = []
        self._kept_sessions: list[str] = []
        self._salt = ""
        self._resets = 0
        self._caching = enable_prefix_caching
        self._seed = seed
        self._served: str | None = None
        self._facts: dict[str, Any] = {}
        self._vocabulary = 0
        self._geometry: tuple[int, list[int]] | None = None
        self._engine: Any = None
        self._use: Any = None
        self._base: LLM | None = None
        self._scratch: str | None = None
        endpoint: Endpoint
        if base_url is not None:
            if settings:
                raise ValueError(f"a server has its own settings: {', '.join(sorted(settings))}")
            self.settings: dict[str, Any] = {}
            self.model_source = model
            endpoint = HttpEndpoint(base_url, api_key)
        else:
            self.settings, ignored = engine_settings(_with_snapshot(settings))
            if ignored:
                warnings.warn(f"without meaning here: {', '.join(ignored)}", stacklevel=2)
            if is_remote(model):
                model = resolve_snapshot_path(model)
            self.model_source = os.fspath(model)
            endpoint = self._own_engine(session_dir)
        self._session_dir = (
            pathlib.Path(session_dir or self._scratch or "") if session_dir or self._scratch else None
        )
        self._client = Client(endpoint, timeout_s=timeout_s)
        if self._use is not None:
            self._engine.start()
        name = self._models()["id"]
        self._tokenizer = Tokenizer(self._call, name, self._vocab_size)
        ranks = int(self.settings.get("tensor_parallel", 1))
        config = VllmConfig(
            ModelConfig(
                self.model_source or name,
                lambda: int(self._models()["max_model_len"]),
                self._vocab_size,
                seed=seed,
                tokenizer=name,
            ),
            ParallelConfig(ranks, ranks),
            CacheConfig(enable_prefix_caching, self._num_blocks),
        )
        self.llm_engine = LLMEngine(config, lambda: self._running)

    def _own_engine(self, session_dir: PathLike | None) -> Endpoint:
        from thaw_vllm._engines import EngineUse, SharedEngine

        if session_dir is None:
            self._scratch = tempfile.mkdtemp(prefix="thaw-llm-")
            weakref.finalize(self, _remove_scratch, self._scratch, os.getpid())
        self._engine = SharedEngine(
            self.model_source, {**self.settings, "session_dir": os.fspath(session_dir or self._scratch or "")}
        )
        self._use = EngineUse(self._engine)
        weakref.finalize(self, self._engine.close)
        endpoint: Endpoint = self._use.endpoint
        return endpoint

    # Ends.

    def close(self) -> None:
        """Ends the engine's processes; with base_url only the connections. May be called twice.

        Calls that run fail (UnavailableError, APIConnectionError), later ones are a RuntimeError; with
        base_url both go on.
        """
        self._client.close()
        if self._engine is not None:
            self._engine.close()
        if self._scratch is not None:
            _remove_scratch(self._scratch, self._owner)

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # Generation.

    def generate(
        self,
        prompts: Any = None,
        sampling_params: Any = None,
        use_tqdm: Any = False,
        lora_request: Any = None,
        priority: Any = None,
        *,
        prompt_token_ids: Any = None,
    ) -> list[RequestOutput]:
        """Completes each prompt: one output for each, in order, with `n` continuations.

        A prompt is a text, token ids, or {"prompt": text} or {"prompt_token_ids": ids}; one, or a list.
        `sampling_params` is one for all or a list. All are computed together: what prompts share is
        computed once. Errors: ValueError for what is wrong with a prompt or a parameter, ThawError's
        others; the first of them is raised once all are done. `use_tqdm` is accepted.
        """
        outcomes = self.generate_each(
            prompts if prompt_token_ids is None else prompt_token_ids, sampling_params, lora_request, priority
        )
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return [outcome for outcome in outcomes if isinstance(outcome, RequestOutput)]

    def generate_each(
        self, prompts: Any, sampling_params: Any = None, lora_request: Any = None, priority: Any = None
    ) -> list[RequestOutput | Exception]:
        """generate() with the error of each prompt that failed in its place."""
        if lora_request is not None:
            raise ValueError("lora_request: adapters are not supported")
        listed = as_prompts(prompts)
        many = isinstance(sampling_params, Sequence) and not isinstance(sampling_params, str)
        given = list(sampling_params) if many else [sampling_params] * len(listed)
        ranks = list(priority) if isinstance(priority, Sequence) else [priority] * len(listed)
        if len(given) != len(listed) or len(ranks) != len(listed):
            raise ValueError(
                f"{len(given)} sampling_params, {len(ranks)} priorities for {len(listed)} prompts"
            )
        if not listed:
            return []
        params = [as_sampling_params(one) for one in given]

        def one(index: int) -> RequestOutput | Exception:
            try:
                return self._complete(index, listed[index], params[index], ranks[index])
            except Exception as error:
                return error

        with self._busy(len(listed)):
            if len(listed) == 1:
                outcomes = [one(0)]
            else:
                with ThreadPoolExecutor(min(MAX_PARALLEL, len(listed))) as threads:
                    outcomes = list(threads.map(one, range(len(listed))))
        whole = [outcome for outcome in outcomes if isinstance(outcome, RequestOutput)]
        if whole:
            self._last_token_ids = whole[-1].prompt_token_ids + whole[-1].outputs[0].token_ids
        return outcomes

    def chat(
        self,
        messages: Any,
        sampling_params: Any = None,
        use_tqdm: Any = False,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """generate() of conversations (a list of messages, or a list of such) by the model's template."""
        each = [messages] if messages and isinstance(messages[0], Mapping) else list(messages)
        ids = [
            self._tokenizer.apply_chat_template(
                conversation,
                True,
                add_generation_prompt,
                continue_final_message,
                tools,
                **(chat_template_kwargs or {}),
            )
            for conversation in each
        ]
        return self.generate(ids, sampling_params)

    def get_tokenizer(self) -> Tokenizer:
        """The engine's own."""
        return self._tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """Those of the checkpoint."""
        return SamplingParams.from_optional(**self._models()["default_sampling_params"])

    # The cache.

    def reset_prefix_cache(self) -> bool:
        """What was computed until now serves no later prompt. True."""
        self.drop_kv()
        with self._lock:
            self._resets += 1
            self._salt = f"reset-{self._resets}-{secrets.token_hex(4)}"
            self._last_token_ids = []
        return True

    def last_token_ids(self) -> list[int]:
        """Prompt and first reply of the last prompt of the last call."""
        return list(self._last_token_ids)

    def kv_block_shape(self) -> tuple[int, list[int]] | None:
        """(layers, [2, block_size, kv_heads, head_dim]), once something was saved; else None."""
        return self._geometry

    def save_kv(self, path: PathLike, token_ids: Sequence[int]) -> dict[str, Any]:
        """Writes the KV of some tokens to `path` and its description beside it, in whole blocks of 16 tokens.

        What is not in memory is computed first. {num_blocks, total_bytes, elapsed_s, block_ids}.
        """
        started = time.monotonic()
        target = pathlib.Path(path)
        whole = len(token_ids) // BLOCK_TOKENS * BLOCK_TOKENS
        if not whole:
            with replacing(target) as f:
                f.write(files.frame_description({"num_blocks": 0}))
            return {
                "num_blocks": 0,
                "total_bytes": 0,
                "elapsed_s": time.monotonic() - started,
                "block_ids": [],
            }
        for attempt in range(2):
            name = f"save-{secrets.token_hex(8)}"
            session = self._import_session({"document": self._document(list(token_ids))})
            try:
                told = self._call("POST", f"/v1/sessions/{session}/export", {"file": name})
            finally:
                self._forget(session)
            exported = self._exports() / f"{name}.thawkv"
            (exported.parent / f"{name}.json").unlink(missing_ok=True)
            meta = exported.with_name(exported.name + files.META_SUFFIX)
            if told.get("kv_tokens") == whole:
                break
            exported.unlink(missing_ok=True)
            meta.unlink(missing_ok=True)
            if attempt:
                raise ForkError(f"the engine did not write the KV: {told.get('kv_error') or told}")
            with self._busy(1):  # let go meanwhile, or never computed
                self._complete(0, list(token_ids), SamplingParams(max_tokens=1, temperature=0.0), None)
        kv, _ = files.parse_description(files.read_small(meta))
        self._geometry = (kv.num_layers, list(kv.block_shape))
        _move(meta, target.with_name(target.name + files.META_SUFFIX))
        _move(exported, target)
        return {
            "num_blocks": kv.num_blocks,
            "total_bytes": kv.payload_bytes,
            "elapsed_s": time.monotonic() - started,
            "block_ids": list(kv.block_ids),
        }

    def load_kv(self, path: PathLike) -> dict[str, Any]:
        """Takes up the KV of a file that an engine like this wrote; {num_blocks, total_bytes, elapsed_s}.

        It is kept until reset_prefix_cache() or close(). ForkError where it is of other weights or
        kernels, or damaged.
        """
        started = time.monotonic()
        source = pathlib.Path(path)
        metadata = files.kv_metadata(source)
        if metadata is None:
            return {"num_blocks": 0, "total_bytes": 0, "elapsed_s": time.monotonic() - started}
        tokens = metadata.get("token_ids")
        if not isinstance(tokens, list) or not tokens:
            raise ForkError(f"{path} does not say which tokens its KV is of")
        salt = str(metadata.get("cache_salt") or "")
        name = f"load-{secrets.token_hex(8)}"
        staged = self._exports() / f"{name}.thawkv"
        document = staged.with_name(f"{name}.json")
        meta = staged.with_name(staged.name + files.META_SUFFIX)
        try:
            _copy(source, staged)
            _copy(source.with_name(source.name + files.META_SUFFIX), meta)
            document.write_text(json.dumps({**self._document(tokens), "cache_salt": salt}))
            told = self._call("POST", "/v1/sessions/import", {"file": name, "ttl_seconds": _SESSION_TTL_S})
        finally:
            for part in (document, staged, meta):
                part.unlink(missing_ok=True)
        kv = told.get("kv") or {}
        if not kv.get("kept"):
            self._forget(told["id"])
            raise ForkError(
                f"{path}: the engine did not take up the KV: {kv.get('error') or 'no reason given'}"
            )
        with self._lock:
            self._kept_sessions.append(told["id"])
            self._salt = salt
        return {
            "num_blocks": int(kv["tokens"]) // BLOCK_TOKENS,
            "total_bytes": int(kv["bytes"]),
            "elapsed_s": time.monotonic() - started,
        }

    def save_weights(self, path: PathLike, tensor_parallel: int = 1) -> dict[str, Any]:
        """Writes the model as a .thaw file, local or s3://: `thaw freeze`. {num_regions, total_bytes, ...}"""
        from thaw_vllm._freeze import freeze_weights

        return freeze_weights(self.model_source, path, tensor_parallel)

    def worker_settings(self) -> dict[str, Any]:
        """Settings with which another engine answers with the same bits."""
        return {key: self.settings[key] for key in _SAME_IN_WORKERS if key in self.settings}

    # Sleep.

    def sleep(self, level: int = 1) -> None:
        """Gives all memory back: the engine's processes end, and with them the cache. No call may run.

        `level` 1 and 2 are the same here: weights come from their file again.
        """
        if level not in (1, 2):
            raise ValueError(f"level is {level}; it must be 1 or 2")
        if self._engine is None:
            raise ForkError("an engine behind base_url is its server's; it cannot be put to sleep from here")
        if self._running:
            raise ForkError("the engine has unfinished requests; it cannot sleep now")
        self._client.close()
        with self._lock:
            self._kept_sessions, self._last_token_ids = [], []
        self._engine.stop()

    def wake_up(self, tags: Sequence[str] | None = None, *, snapshot: PathLike | None = None) -> None:
        """Starts the engine again, from `snapshot` (a .thaw file) where it is given. `tags` are accepted.

        Where it does not start from that file it sleeps on, and can be woken without it.
        """
        if self._engine is None:
            raise ForkError("an engine behind base_url is its server's; it cannot be woken from here")
        before = self._engine.settings
        if snapshot is not None:
            self._engine.settings = {**before, "snapshot": os.fspath(snapshot)}
        try:
            self._engine.start()
        except BaseException:
            self._engine.settings = before
            raise

    def is_sleeping(self) -> bool:
        """True between sleep() and wake_up()."""
        engine = self._engine
        return engine is not None and not engine.has_started and not engine.is_closed

    def collective_rpc(
        self, method: Any, timeout: float | None = None, args: Any = (), kwargs: Any = None
    ) -> Any:
        """ForkError: thaw's workers are no Python processes. What scripts do by it has functions here."""
        raise ForkError("thaw's workers run no Python; freeze_*, restore_* and fork() take the LLM itself")

    def status(self) -> dict[str, Any]:
        """GET /admin/pool: slots, workers, their counters."""
        found: dict[str, Any] = self._call("GET", "/admin/pool")
        return found

    # Below.

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        if self._served is not None and body is not None and not path.startswith("/v1/sessions/"):
            body = {**body, "model": self._served}
        return self._client.call(method, path, body)

    def of_model(self, name: str) -> LLM:
        """The same engine, asked for another of its models (`register`, `pool_size`). Nothing to close."""
        view = copy.copy(self)
        view._lock, view._kept_sessions, view._facts, view._vocabulary = threading.Lock(), [], {}, 0
        view._served = view.model_source = name
        view._geometry = None
        view._tokenizer = Tokenizer(view._call, name, view._vocab_size)
        model = ModelConfig(
            name, lambda: int(view._models()["max_model_len"]), view._vocab_size, tokenizer=name
        )
        cache = CacheConfig(self._caching, view._num_blocks)
        config = VllmConfig(model, self.llm_engine.parallel_config, cache)
        view.llm_engine = LLMEngine(config, lambda: view._running)
        view._engine = view._use = view._scratch = None
        view._base = self  # whose engine ends when nobody has it any more
        return view

    @contextlib.contextmanager
    def _busy(self, count: int) -> Iterator[None]:
        with self._lock:
            self._running += count
        try:
            yield
        finally:
            with self._lock:
                self._running -= count

    def _models(self) -> dict[str, Any]:
        if not self._facts:
            listed = self._call("GET", "/v1/models")["data"]
            self._facts = next((one for one in listed if one["id"] == self._served), listed[0])
        return self._facts

    def _num_blocks(self) -> int:
        workers = self.status()["workers"]
        return max((int((worker.get("stats") or {}).get("blocks_total", 0)) for worker in workers), default=0)

    def _vocab_size(self) -> int:
        if not self._vocabulary:
            made = self._call(
                "POST", "/v1/sessions", {"messages": [{"role": "user", "content": "."}], "prefill": False}
            )
            try:
                exported = self._call("POST", f"/v1/sessions/{made['id']}/export", {})
                self._vocabulary = int(exported["document"]["vocab_size"])
            finally:
                self._forget(made["id"])
        return self._vocabulary

    def _complete(
        self, index: int, prompt: str | list[int], params: SamplingParams, priority: Any
    ) -> RequestOutput:
        body: dict[str, Any] = {
            **request_fields(params),
            "prompt": prompt,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        if "max_tokens" not in body:
            count = len(prompt) if isinstance(prompt, list) else len(self._tokenizer.encode(prompt))
            body["max_tokens"] = max(1, int(self._models()["max_model_len"]) - count)
        if params.seed is None and self._seed is not None:
            body["seed"] = self._seed + index
        salt = self._salt if self._caching else secrets.token_hex(8)
        if salt:
            body["cache_salt"] = salt
        if priority is not None:
            body["priority"] = priority
        reply = self._call("POST", "/v1/completions", body)
        choices = sorted(reply["choices"], key=lambda choice: choice["index"])
        if len(choices) != params.n:
            raise ForkError(f"the engine gave {len(choices)} of {params.n} choices")
        first = choices[0]
        usage = reply.get("usage") or {}
        return RequestOutput(
            reply["id"],
            prompt if isinstance(prompt, str) else None,
            list(first.get("prompt_token_ids") or (prompt if isinstance(prompt, list) else [])),
            [completion_of(choice, self._tokenizer.text_of) for choice in choices],
            prompt_logprobs_of(first.get("prompt_logprobs")),
            num_cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
        )

    def _exports(self) -> pathlib.Path:
        if self._session_dir is None:
            raise ForkError(
                "KV moves by files of the server's --session-dir; name it: LLM(base_url=, session_dir=)"
            )
        return self._session_dir / "exports"

    def _document(self, tokens: list[int]) -> dict[str, Any]:
        """A session of exactly these tokens (docs/sessions.md, To another server)."""
        mark = {"tokens": len(tokens), "messages": 0, "end": "inside"}
        return {
            "format": "thaw-session",
            "version": 1,
            "id": secrets.token_hex(16),
            "vocab_size": self._vocab_size(),
            "cache_salt": self._salt,
            "states": [{"common_tokens": 0, "tokens": tokens, "messages": [], "marks": [mark]}],
            "checkpoints": [],
        }

    def _import_session(self, body: dict[str, Any]) -> str:
        return str(self._call("POST", "/v1/sessions/import", body)["id"])

    def _forget(self, session: str) -> None:
        with contextlib.suppress(Exception):
            self._call("DELETE", f"/v1/sessions/{session}")

    def drop_kv(self) -> None:
        """Lets go what load_kv() took up."""
        with self._lock:
            dropped, self._kept_sessions = self._kept_sessions, []
        for session in dropped:
            self._forget(session)


def _remove_scratch(folder: str, owner: int) -> None:
    """Not by a forked child, whose parent still uses it."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _with_snapshot(settings: Mapping[str, Any]) -> dict[str, Any]:
    """vLLM's way to name a .thaw file (`load_format="thaw"`) as `snapshot`."""
    found = dict(settings)
    extra = found.pop("model_loader_extra_config", None)
    if found.get("load_format") == "thaw":
        if not isinstance(extra, Mapping) or not extra.get("snapshot"):
            raise ValueError(
                'load_format="thaw" needs model_loader_extra_config={"snapshot": "weights.thaw"}'
            )
        found["snapshot"] = resolve_snapshot_path(extra["snapshot"])
        del found["load_format"]
    elif extra:
        raise ValueError('model_loader_extra_config is for load_format="thaw"')
    return found


def _move(source: pathlib.Path, target: pathlib.Path) -> None:
    try:
        os.replace(source, target)
    except OSError:  # another file system
        _copy(source, target)
        source.unlink()


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """A plain file, never a link to one."""
    with open(files.open_plain(source), "rb") as old, replacing(target) as new:
        shutil.copyfileobj(old, new, 8 << 20)
