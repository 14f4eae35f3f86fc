"""Forks of an engine's session: handles, and completions that go on from one trunk.

The module can be called: `thaw_vllm.fork(llm)` is fork(), and `thaw_vllm.fork.ForkHandle` a name in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import secrets
import shutil
import sys
import tempfile
import time
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from thaw_common.cloud import is_remote

from thaw_vllm import _engine_checks as checks
from thaw_vllm import _handle_files as files
from thaw_vllm import _handle_store as store
from thaw_vllm._sampling import num_choices
from thaw_vllm.errors import (
    BlockPoolTooSmallError,
    BlockShapeMismatchError,
    ForkBranchError,
    ForkError,
    ForkPoolError,
    HandleClosedError,
    ModelMismatchError,
    PrefixCachingDisabledError,
    UnfinishedRequestsError,
    WorkerBootTimeout,
    WorkerDead,
    WorkerProtocolError,
)

if TYPE_CHECKING:
    from thaw_vllm.fork_pool import ForkPool

__all__ = [
    "BlockPoolTooSmallError", "BlockShapeMismatchError", "ForkBranchError", "ForkCompletionResult",
    "ForkError", "ForkHandle", "ForkPoolError", "HandleClosedError", "ModelMismatchError",
    "PrefixCachingDisabledError", "UnfinishedRequestsError", "WorkerBootTimeout", "WorkerDead",
    "WorkerProtocolError", "checkout", "checkpoint", "fork", "fork_completions",
]  # fmt: skip

PathLike = str | os.PathLike[str]
MAX_PREVIEW_IDS = 2048
MAX_PREVIEW_CHARACTERS = 1500
_PRIVATE = ("_owns_state_dir", "_closed")


@dataclasses.dataclass
class ForkCompletionResult:
    """What one prompt of a round became.

    `worker_index` is -1 where the engine's own pool chose; `elapsed_s` in seconds; `mode` is
    "same_process" or "subprocess"; `raw` what the engine or the worker said. `choices` has all `n`
    outputs as (text, token_ids, finish_reason), the first of which is `text` and `token_ids`. `error` is
    set where this branch failed, and then `text` is empty.
    """

    prompt: str
    text: str
    token_ids: list[int]
    worker_index: int
    elapsed_s: float
    mode: str
    raw: Any = None
    choices: list[tuple[str, list[int], str | None]] = dataclasses.field(default_factory=list)
    error: ForkError | None = None


@dataclasses.dataclass
class ForkHandle:
    """A session at a fork point: a directory with its KV, and weights where they were included.

    Sizes in tokens and blocks; `block_shape` is [2, block_size, kv_heads, head_dim]; `created_at` in Unix
    seconds. Close it, or use it in a `with`: a directory that fork() made is removed then. One thread
    at a time.
    """

    model_id: str
    state_dir: str
    kv_path: str
    weights_path: str | None
    prefix_tokens: int
    block_shape: list[int]
    num_layers: int
    max_block_id: int
    num_kv_blocks: int
    handle_id: str = ""
    parent_id: str | None = None
    label: str | None = None
    prefix_token_ids: list[int] | None = None
    prefix_preview: str | None = None
    tensor_parallel_size: int = 1
    vllm_version: str | None = None
    created_at: float = 0.0
    version: int = 1
    _owns_state_dir: bool = dataclasses.field(default=False, repr=False, compare=False)
    _closed: bool = dataclasses.field(default=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._owner = os.getpid()

    @classmethod
    def load(cls, state_dir: PathLike) -> ForkHandle:
        """Opens a directory, or what lies below s3://BUCKET/PREFIX; its handle.json may be named as well.

        FileNotFoundError without handle.json; ForkError for another version and for what is damaged.
        """
        if is_remote(state_dir):
            uri = os.fspath(state_dir).removesuffix("/" + files.HANDLE_FILE)
            return cls._of(store.read(store.download_handle(uri)))
        return cls._of(store.read(files.directory_of(state_dir)))

    @classmethod
    def _of(cls, found: files.HandleFiles) -> ForkHandle:
        names = {field.name for field in dataclasses.fields(cls)} - set(_PRIVATE)
        fields = {key: value for key, value in found.fields.items() if key in names}
        fields["block_shape"] = list(fields.get("block_shape") or [])
        fields.setdefault("max_block_id", -1)
        return cls(**{**fields, **_paths(found.path, found.has_weights)})

    def save(self, target_dir: PathLike) -> ForkHandle:
        """Copies everything to a directory or below s3://BUCKET/PREFIX; the copy owns nothing."""
        return self._copy(target_dir, {})

    def branch(self, target_dir: PathLike, label: str | None = None) -> ForkHandle:
        """save() as a child: with an id of its own, and this one's as `parent_id`."""
        child = {"handle_id": secrets.token_hex(16), "parent_id": self.handle_id or None, "label": label}
        return self._copy(target_dir, {**child, "created_at": time.time()})

    def hydrate(self, llm: Any) -> dict[str, Any]:
        """Gives the engine this handle's KV: prompts that begin with its tokens do not compute them again.

        {weights_restored: False, kv: {num_blocks, total_bytes, elapsed_s}}: weights stay what they are,
        and KV of others is refused. Nothing is touched before the model (ModelMismatchError), prefix
        caching, the number of blocks, and layers and shape of a block were compared.
        """
        self._check_open()
        directory = self._local_directory()
        found = store.read(directory)
        checks.check_model(llm, self.model_id)
        checks.check_prefix_caching(llm)
        checks.check_idle(llm)
        checks.check_capacity(llm, self.num_kv_blocks)
        checks.check_layout(llm, found)
        from thaw_vllm.kv_snapshot import restore_kv_cache

        kv = restore_kv_cache(llm, directory / files.KV_FILE)
        return {"weights_restored": False, "kv": kv}

    def close(self) -> None:
        """Removes the directory where fork() made it. Later use is a HandleClosedError. Twice is fine."""
        if self._closed:
            return
        self._closed = True
        if self._owns_state_dir and os.getpid() == self._owner:  # not by a forked child
            shutil.rmtree(self.state_dir, ignore_errors=True)

    def __enter__(self) -> ForkHandle:
        self._check_open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be ending
            self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise HandleClosedError(f"the handle {self.label or self.handle_id or self.state_dir} is closed")

    def _fields(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _PRIVATE}

    def _local_directory(self) -> pathlib.Path:
        if not is_remote(self.state_dir):
            return pathlib.Path(self.state_dir)
        folder = store.download_handle(self.state_dir)
        now = store.read(folder).fields.get("handle_id")
        if now != self.handle_id:
            raise ForkError(f"{self.state_dir} holds another handle now, {now}; this one is {self.handle_id}")
        return folder

    def _copy(self, target: PathLike, changes: dict[str, Any]) -> ForkHandle:
        self._check_open()
        fields = {**self._fields(), **changes}
        source = self._local_directory()
        if is_remote(target):
            uri = os.fspath(target).rstrip("/")
            store.upload_handle(source, uri, fields)
            paths = {"state_dir": uri, "kv_path": f"{uri}/{files.KV_FILE}"}
            weights = f"{uri}/{files.WEIGHTS_FILE}" if fields["weights_path"] else None
            return ForkHandle(**{**fields, **paths, "weights_path": weights})
        folder = pathlib.Path(target)
        store.copy_handle(source, folder, fields)
        return ForkHandle(**{**fields, **_paths(folder, bool(fields["weights_path"]))})


def _paths(directory: pathlib.Path, has_weights: bool) -> dict[str, Any]:
    return {
        "state_dir": str(directory),
        "kv_path": str(directory / files.KV_FILE),
        "weights_path": str(directory / files.WEIGHTS_FILE) if has_weights else None,
    }


def fork(
    llm: Any,
    *,
    include_weights: bool = False,
    state_dir: PathLike | None = None,
    label: str | None = None,
    parent_id: str | None = None,
    prompt: str | None = None,
    prompt_token_ids: Sequence[int] | None = None,
) -> ForkHandle:
    """Writes the KV of a prompt as a handle: to `state_dir` (s3:// too), else a directory of its own.

    The prompt is `prompt_token_ids`, or `prompt`, or the last one that the engine answered together
    with its first reply; what of it is not cached any more is computed again. Whole blocks are kept.
    `include_weights` puts a .thaw file of the model beside it. UnfinishedRequestsError while the engine
    generates; PrefixCachingDisabledError; ForkError for an engine that has no KV to give.
    """
    checks.check_idle(llm)
    checks.check_prefix_caching(llm)
    token_ids = checks.trunk_tokens(llm, prompt, prompt_token_ids)
    remote = state_dir if state_dir is not None and is_remote(state_dir) else None
    owns = state_dir is None or remote is not None
    folder = pathlib.Path(tempfile.mkdtemp(prefix="thaw-fork-") if owns else os.fspath(state_dir or ""))
    try:
        if not owns:
            store.check_target(folder)
            (folder / files.HANDLE_FILE).unlink(missing_ok=True)
        stats = checks.save_kv(llm, folder / files.KV_FILE, token_ids)
        if include_weights:
            checks.save_weights(llm, folder / files.WEIGHTS_FILE)
        kv = files.open_kv(folder)[0] or files.KvDescription()
        text = prompt if prompt is not None else checks.decode(llm, token_ids[:MAX_PREVIEW_IDS])
        handle = ForkHandle(
            model_id=checks.model_id(llm),
            **_paths(folder, include_weights),
            prefix_tokens=kv.num_blocks * kv.block_size,
            block_shape=list(kv.block_shape),
            num_layers=kv.num_layers,
            max_block_id=max(kv.block_ids, default=-1),
            num_kv_blocks=stats["num_blocks"],
            handle_id=secrets.token_hex(16),
            parent_id=parent_id,
            label=label,
            prefix_token_ids=list(token_ids[:MAX_PREVIEW_IDS]) or None,
            prefix_preview=text[:MAX_PREVIEW_CHARACTERS] if text else None,
            created_at=time.time(),
        )
        store.write_manifest(folder, handle._fields())
        handle._owns_state_dir = owns
    except BaseException:
        if owns:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if remote is None:
        return handle
    with handle:
        return handle.save(remote)


#: The same as fork(), by the name that goes with checkout().
checkpoint = fork


def checkout(handle: ForkHandle, llm: Any) -> dict[str, Any]:
    """handle.hydrate(llm)."""
    return handle.hydrate(llm)


def fork_completions(
    llm: Any,
    prompts: str | Sequence[str],
    sampling_params: Any,
    *,
    workers: int | None = None,
    pool: ForkPool | None = None,
    state_dir: PathLike | None = None,
    handle: ForkHandle | None = None,
    extra_env: Mapping[str, str] | None = None,
    return_errors: bool = False,
) -> list[ForkCompletionResult]:
    """Completes prompts that share a trunk: one result for each, in order.

    Without `workers` and `pool` the engine answers itself; `pool` does where it is given; `workers=N`
    starts that many processes for this call (each loads the model: from the handle's weights, or
    where no handle is given the engine's own model). `extra_env` is their environment besides this
    process's. A branch that fails is a ForkBranchError, whose `results` has what the others said; with
    `return_errors` it is a result with `error` set. ForkError where the arguments contradict each other.
    """
    listed = [prompts] if isinstance(prompts, str) else list(prompts)
    if workers is not None and pool is not None:
        raise ForkError("workers and pool are two ways to run branches; give one of them")
    if workers is not None and workers <= 0:
        raise ForkError(f"workers is {workers}; it must be at least 1")
    if not listed:
        return []
    if pool is not None:
        return pool.fork_completions(
            llm, listed, sampling_params, state_dir=state_dir, handle=handle, return_errors=return_errors
        )
    if workers is None:
        if handle is not None:
            handle.hydrate(llm)
        return _in_place(llm, listed, sampling_params, return_errors)
    ranks = checks.tensor_parallel_size(llm) if handle is None else handle.tensor_parallel_size
    if ranks > 1:
        raise ForkError(f"workers= is for one rank; this engine has {ranks}. Use pool=")
    if handle is not None and not handle.weights_path:
        raise ForkError("workers= needs a handle with weights: fork(llm, include_weights=True)")
    from thaw_vllm.fork_pool import ForkPool, own_worker_command

    cold = ForkPool(worker_cmd=own_worker_command())
    try:
        model = checks.model_source(llm) if handle is None else handle.model_id
        settings = checks.worker_settings(llm)
        count = min(workers, len(listed))
        cold.init_pool(model, count, preload_weights=handle is None, env=extra_env, **settings)
        return cold.fork_completions(
            llm, listed, sampling_params, state_dir=state_dir, handle=handle, return_errors=return_errors
        )
    finally:
        cold.close()


def _in_place(
    llm: Any, prompts: list[str], sampling_params: Any, return_errors: bool
) -> list[ForkCompletionResult]:
    started = time.monotonic()
    try:
        outputs = list(llm.generate(prompts, sampling_params))
    except (ForkError, ValueError, TypeError):
        raise
    except Exception as error:
        raise ForkError(f"the engine failed: {type(error).__name__}: {error}") from error
    elapsed = (time.monotonic() - started) / len(prompts)
    if len(outputs) != len(prompts):
        raise ForkError(f"the engine answered {len(outputs)} of {len(prompts)} prompts")
    results = []
    for prompt, output in zip(prompts, outputs):
        choices = [(o.text, list(o.token_ids), getattr(o, "finish_reason", None)) for o in output.outputs]
        results.append(branch_result(prompt, choices, 0, elapsed, "same_process", output, sampling_params))
    return settle(results, return_errors)


def branch_result(
    prompt: str,
    choices: list[tuple[str, list[int], str | None]],
    worker_index: int,
    elapsed_s: float,
    mode: str,
    raw: Any,
    sampling_params: Any,
) -> ForkCompletionResult:
    """A result, with an error where the engine gave fewer choices than `n` asks for."""
    wanted = num_choices(sampling_params)
    if len(choices) != wanted:
        error = WorkerProtocolError(f"{len(choices)} of {wanted} choices (n) came back for a prompt")
        return ForkCompletionResult(prompt, "", [], worker_index, elapsed_s, mode, raw, [], error)
    text, token_ids, _ = choices[0]
    return ForkCompletionResult(prompt, text, token_ids, worker_index, elapsed_s, mode, raw, choices)


def settle(results: list[ForkCompletionResult], return_errors: bool) -> list[ForkCompletionResult]:
    """The results, or a ForkBranchError that carries them where a branch failed."""
    failed = [(i, result.error) for i, result in enumerate(results) if result.error is not None]
    if not failed or return_errors:
        return results
    index, error = failed[0]
    more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
    message = f"branch {index} of {len(results)} failed{more}: {type(error).__name__}: {error}"
    raise ForkBranchError(message, results) from error


class _CallableModule(types.ModuleType):
    """`thaw_vllm.fork` is this module and the function of that name."""

    __signature__ = None

    def __call__(self, llm: Any, **keywords: Any) -> ForkHandle:
        return fork(llm, **keywords)


def _make_callable() -> None:
    import inspect

    module = sys.modules[__name__]
    module.__class__ = _CallableModule
    module.__dict__["__signature__"] = inspect.signature(fork)


_make_callable()
