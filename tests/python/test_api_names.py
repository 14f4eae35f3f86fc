"""Every public name that scripts written for thaw-vllm use: there, callable as they call it, of the kind
they expect. What each does is tested where it is tested; the last test says where."""

import dataclasses
import importlib
import inspect
import os
import subprocess
import sys

import pytest

#: name in thaw_vllm -> its parameters, keyword-only ones behind *.
FUNCTIONS = {
    "load": "model, snapshot, kv_snapshot=None, **kwargs",
    "freeze_model": "model, path, engine_commit=None",
    "freeze_model_pipelined": "model, path, engine_commit=None",
    "restore_model": "model, path",
    "restore_model_pipelined": "model, path, chunk_size_mb=64, direct_io=True",
    "restore_model_from_ram": "model, path, chunk_size_mb=64",
    "freeze_model_tp": "llm, base_path, vllm_commit=None",
    "restore_model_tp": "llm, base_path, chunk_size_mb=64",
    "freeze_kv_cache": "llm, path",
    "freeze_kv_cache_tp": "llm, path",
    "restore_kv_cache": "llm, path",
    "restore_kv_cache_tp": "llm, path",
    "create_pool_app": "pool",
    "fork": "llm, *, include_weights=False, state_dir=None, label=None, parent_id=None, prompt=None, "
    "prompt_token_ids=None",
    "checkpoint": "llm, *, include_weights=False, state_dir=None, label=None, parent_id=None, prompt=None, "
    "prompt_token_ids=None",
    "checkout": "handle, llm",
    "capture_rollouts": "llm, prompt, sampling_params, *, out_dir, n=None, handle=None, logprobs=5, "
    "labels=None",
    "fork_completions": "llm, prompts, sampling_params, *, workers=None, pool=None, state_dir=None, "
    "handle=None, extra_env=None",
}
METHODS = {
    "ForkPool.__init__": "self, *, worker_cmd=None",
    "ForkPool.init_pool": "self, model, workers=1, *, preload_weights=False, boot_timeout_s=1800.0, "
    "env=None, **llm_kwargs",
    "ForkPool.fork_completions": "self, llm, prompts, sampling_params, *, state_dir=None, handle=None, "
    "extra_op_fields=None",
    "ForkPool.close": "self, timeout_s=30.0",
    "ForkPool.status": "self",
    "ForkHandle.load": "state_dir",
    "ForkHandle.save": "self, target_dir",
    "ForkHandle.branch": "self, target_dir, label=None",
    "ForkHandle.hydrate": "self, llm",
    "ForkHandle.close": "self",
    "EnginePool.init_pool": "self, model, pool_size=1, tensor_parallel_size=1, **llm_kwargs",
    "EnginePool.register": "self, name, path",
    "EnginePool.unregister": "self, name",
    "EnginePool.acquire": "self, name",
    "EnginePool.release": "self, slot",
    "EnginePool.preload": "self, name, slot_id=None",
    "EnginePool.status": "self",
    "LLM.generate": "self, prompts, sampling_params",
    "LLM.get_tokenizer": "self",
    "LLM.collective_rpc": "self, method, timeout=None, args=()",
    "LLM.reset_prefix_cache": "self",
    "LLM.sleep": "self, level=1",
    "LLM.wake_up": "self",
    "ThawModelLoader.download_model": "self, model_config",
    "ThawModelLoader.load_weights": "self, model, model_config",
}
ERRORS = {
    "ForkError": "RuntimeError", "ModelMismatchError": "ForkError", "BlockShapeMismatchError": "ForkError",
    "BlockPoolTooSmallError": "ForkError", "PrefixCachingDisabledError": "ForkError",
    "UnfinishedRequestsError": "ForkError", "HandleClosedError": "ForkError", "ForkPoolError": "ForkError",
    "WorkerBootTimeout": "ForkPoolError", "WorkerDead": "ForkPoolError",
    "WorkerProtocolError": "ForkPoolError",
}  # fmt: skip
#: name in another module -> its parameters, or None for what is no function.
ELSEWHERE = {
    "thaw_vllm.agentfs": {
        "summarize_handle": "path", "inspect_handle": "path", "diff_handles": "a, b", "log_handles": "root",
    },
    "thaw_vllm.rewind": {
        "extract_token_logprobs": "completion_output, max_topk=5",
        "build_rollout": "*, model_id, prompt_token_ids, tokens, fork_index=None, parent_id=None, "
        "label=None, sampling=None, text=None, rollout_id=None, created_at=None",
        "write_rollout": "record, target_dir", "summarize_rollout": "path", "inspect_rollout": "path",
        "diff_rollouts": "a, b", "pivot_rollouts": "root", "drift_report": "path", "ROLLOUT_FILENAME": None,
        "ROLLOUT_VERSION": None, "_first_divergence": None, "_drift_stats": None,
    },
    "thaw_vllm.sleep_mode": {
        "sleep": "llm, path, *, level=2, strict=True", "wake_up": "llm, path, *, chunk_size_mb=64",
        "SleepModeUnavailableError": None,
    },
    "thaw_vllm.recorder": {
        "ShapeTrace": None, "Recorder": "llm", "shape_signature": "trace, target=None",
        "req_id_matches": None,
    },
    "thaw_vllm.server": {"create_app": "llm, model_name", "create_pool_app": "pool"},
    "thaw_vllm.pool": {"EnginePool": "", "EngineSlot": None},
    "thaw_vllm.loader": {"register": "", "_rank_snapshot_path": None, "ThawModelLoader": None},
    "thaw_vllm.kv_snapshot": {"_get_engine_core": "llm", "freeze_kv_cache": "llm, path"},
    "thaw_vllm.fork": {"ForkHandle": None, "ForkCompletionResult": None, **dict.fromkeys(ERRORS)},
    "thaw_vllm.fork_pool": {"ForkPool": None, "ForkPoolError": None, "WorkerDead": None},
    "thaw_common.format": {
        "write_header": "f, num_regions, engine_commit=None", "read_header": "f", "read_region_entry": "f",
        "write_region_entry": "f, kind, logical_id, size, file_offset", "MAGIC": None, "KIND_WEIGHTS": None,
        "KIND_KV_LIVE_BLOCK": None, "KIND_METADATA": None, "HEADER_SIZE": None, "REGION_ENTRY_SIZE": None,
    },
    "thaw_common.util": {"rank_snapshot_path": "base, rank"},
    "thaw_common.cloud": {
        "is_remote": "uri", "resolve_snapshot_path": "uri, cache_dir=None, force=False, progress=None",
        "upload_snapshot": "local, uri",
    },
    "thaw_common.telemetry": {
        "strict_mode": "", "quiet_mode": "", "fallback_warning": "label, exc, *, dst=''",
        "check_pinned": "tensor, name",
    },
    "thaw_common.snapshot": {
        "make_pinned_mmap": "path", "restore_model_from_pinned_mmap": "model, pinned",
        **{name: FUNCTIONS[name] for name in FUNCTIONS if "model" in name and "_tp" not in name},
    },
    "thaw_vllm.snapshot": {"freeze_model": None, "make_pinned_mmap": None, "MAGIC": None, "is_remote": None},
    "thaw_vllm.langgraph": {
        "ForkCoalescer": "*, fork_callable, single_callable, batch_single_callable=None, window_ms=2.0, "
        "min_prefix_tokens=500, token_counter=None",
        "ForkCallable": None, "SingleCallable": None, "TokenCounter": None, "ChatThaw": None,
        "fork_fanout": "llm, parent_messages, suffix_message_lists, *, stop=None, **sampling_overrides",
    },
    "thaw_vllm.langgraph.coalescer": {"BatchSingleCallable": None, "ForkCoalescer": None},
    "thaw_vllm.langgraph._message_utils": {
        "message_key": None, "common_prefix_length": None, "approximate_token_count": None,
    },
    "thaw_sglang": {
        "freeze": "model, output, **engine_kwargs", "load": "model, snapshot, **engine_kwargs",
        "freeze_model": None, "restore_model_from_ram": None,
    },
    "thaw": {
        "freeze_to_file_pipelined": "path, requests, vllm_commit=None",
        "restore_from_file_pipelined": "path, mapping, chunk_size_mb=64, direct_io=True",
        "restore_from_bytes_pipelined": "data, mapping, chunk_size_mb=64",
        "restore_from_bytes_auto": "data, mapping, chunk_size_mb=64",
        "restore_from_bytes_pipelined_zerocopy": "data, mapping",
        "restore_from_pinned_mmap": "pinned, mapping", "PinnedMmap": "buffer",
    },
}  # fmt: skip


def check_signature(function, written: str):
    """Ours takes what is written, in this order and with these defaults; what it has beyond has defaults."""
    wanted = inspect.signature(eval(f"lambda {written}: 0")).parameters
    ours = inspect.signature(function).parameters
    positional = [n for n, p in wanted.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [n for n, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD][: len(positional)] == positional
    for name, parameter in wanted.items():
        assert name in ours, f"no parameter {name}"
        if parameter.kind is parameter.VAR_KEYWORD:
            assert ours[name].kind is parameter.VAR_KEYWORD
        else:
            is_needed = parameter.default is parameter.empty
            assert is_needed or ours[name].default == parameter.default, name
    for name, parameter in ours.items():
        extra = name not in wanted and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        assert not extra or parameter.default is not parameter.empty, f"{name} is new and needed"


CLASSES = ("ThawModelLoader", "EnginePool", "ForkHandle", "ForkPool", "LLM", "SamplingParams")


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES, "ForkCompletionResult", *ERRORS])
def test_the_package_has(name):
    package = importlib.import_module("thaw_vllm")
    value = getattr(package, name)
    assert callable(value) and name in package.__all__ and name in dir(package)
    if name in FUNCTIONS:
        check_signature(value, FUNCTIONS[name])
    if name in ERRORS:
        assert value.__mro__[1].__name__ == ERRORS[name]


@pytest.mark.parametrize("name", METHODS)
def test_the_class_has(name):
    kind, method = name.split(".")
    check_signature(getattr(getattr(importlib.import_module("thaw_vllm"), kind), method), METHODS[name])


@pytest.mark.parametrize("module, name", [(m, n) for m, names in ELSEWHERE.items() for n in names])
def test_the_module_has(module, name):
    value = getattr(importlib.import_module(module), name)
    if ELSEWHERE[module][name] is not None:
        check_signature(value, ELSEWHERE[module][name])


def test_objects_have_their_attributes():
    from thaw_vllm import EnginePool, ForkPool
    from thaw_vllm.langgraph import ChatThaw, ForkCoalescer
    from thaw_vllm.pool import EngineSlot
    from thaw_vllm.recorder import Recorder, ShapeTrace

    wanted = [
        (EnginePool(), "slots snapshots base_model tp_size"),
        (EngineSlot(0), "id llm model_name snapshot_path lock"),
        (ForkPool(), "slots model worker_kwargs preload_weights"),
        (
            ShapeTrace,
            "add_step note_request steps_for num_sampled dummy_spec to_dict from_dict save load "
            "certificate_bytes",
        ),
        (Recorder, "start stop __enter__ __exit__"),
        (ForkCoalescer, "submit"),
        (
            ChatThaw(model="x"),
            "model fork_window_ms fork_min_prefix_tokens enable_auto_fork workers "
            "tensor_parallel_size enforce_eager gpu_memory_utilization worker_gpu_memory_utilization "
            "temperature max_tokens top_p extra_llm_kwargs extra_pool_kwargs close",
        ),
    ]
    for value, names in wanted:
        assert [name for name in names.split() if not hasattr(value, name)] == []


def test_loaders_of_sglang_say_what_they_need():
    import thaw_sglang

    for name in ("ThawSGLangModelLoader", "ThawSGLangFreezeLoader"):
        try:
            assert callable(getattr(thaw_sglang, name))
        except ImportError as error:
            assert "thaw-vllm[sglang]" in str(error)


def test_vllm_s_workers_take_functions_where_somebody_wants_that():
    name = "VLLM_ALLOW_INSECURE_SERIALIZATION"
    show = f"import os; print(os.environ.get({name!r}))"
    imports = {
        "from thaw_vllm import loader; loader.register()": (None, "None"),
        "from thaw_vllm import freeze_model_tp": (None, "1"),
        "from thaw_vllm import restore_model_tp": ("0", "0"),
    }
    for code, (before, after) in imports.items():
        env = {key: value for key, value in os.environ.items() if key != name}
        env |= {"PYTHONPATH": os.pathsep.join(sys.path)} | ({} if before is None else {name: before})
        ran = subprocess.run(
            [sys.executable, "-c", f"{code}; {show}"], env=env, capture_output=True, text=True, timeout=60
        )
        assert ran.stdout.strip() == after, ran.stderr


def test_fork_is_function_and_module():
    import thaw_vllm
    import thaw_vllm.fork
    from thaw_vllm import fork
    from thaw_vllm.fork import ForkHandle

    assert fork is thaw_vllm.fork is sys.modules["thaw_vllm.fork"] and callable(fork)
    assert fork.ForkHandle is ForkHandle is thaw_vllm.ForkHandle
    with pytest.raises(TypeError):
        fork()


def test_fields_stand_in_their_order():
    from thaw_vllm import ForkCompletionResult, ForkHandle

    handle = [f.name for f in dataclasses.fields(ForkHandle) if not f.name.startswith("_")]
    assert handle == [
        "model_id", "state_dir", "kv_path", "weights_path", "prefix_tokens", "block_shape", "num_layers",
        "max_block_id", "num_kv_blocks", "handle_id", "parent_id", "label", "prefix_token_ids",
        "prefix_preview", "tensor_parallel_size", "vllm_version", "created_at", "version",
    ]  # fmt: skip
    result = [f.name for f in dataclasses.fields(ForkCompletionResult)]
    assert result[:7] == ["prompt", "text", "token_ids", "worker_index", "elapsed_s", "mode", "raw"]
    assert ForkCompletionResult("p", "t", [1], 0, 0.5, "subprocess").raw is None


def test_constants():
    from thaw_common import format
    from thaw_vllm import rewind

    assert (format.MAGIC, format.VERSION, format.HEADER_SIZE, format.REGION_ENTRY_SIZE) == (
        b"THAW",
        1,
        4096,
        32,
    )
    assert (format.KIND_WEIGHTS, format.KIND_KV_LIVE_BLOCK, format.KIND_METADATA) == (0, 1, 2)
    assert (rewind.ROLLOUT_FILENAME, rewind.ROLLOUT_VERSION) == ("rollout.json", 1)


def test_type_checkers_see_the_same_names():
    exports = importlib.import_module("thaw_vllm._exports")
    names = importlib.import_module("thaw_vllm._names")
    assert set(exports.__all__) == {*names.NAMES, *names.MODULES}


def test_submodules_are_attributes_and_the_import_is_light():
    code = (
        "import sys, thaw_vllm\n"
        "heavy = {'torch', 'vllm', 'boto3', 'langchain_core', 'numpy', 'asyncio'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "for name in ('agentfs', 'rewind', 'recorder', 'sleep_mode', 'fork'):\n"
        "    assert getattr(thaw_vllm, name).__name__ == 'thaw_vllm.' + name\n"
        "try:\n    thaw_vllm.nonsense\nexcept AttributeError as error:\n    assert 'nonsense' in str(error)\n"
    )
    path = [entry for entry in sys.path if entry]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{code}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_vllm_shim_has_what_scripts_import():
    from thaw_vllm.shims import DIRECTORY

    code = (
        "from vllm import LLM, SamplingParams, RequestOutput, CompletionOutput, TokensPrompt\n"
        "from vllm.sampling_params import SamplingParams as same\n"
        "from vllm.outputs import RequestOutput as too\n"
        "from vllm.inputs import TextPrompt\n"
        "import thaw_vllm, vllm\n"
        "assert LLM is thaw_vllm.LLM and SamplingParams is same and RequestOutput is too\n"
        "assert vllm.__version__.endswith('+thaw') and TokensPrompt(prompt_token_ids=[1])\n"
    )
    path = [DIRECTORY, *(entry for entry in sys.path if entry)]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{code}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = subprocess.run(
        [sys.executable, "-c", f"import sys, runpy; sys.path[:0] = {path[1:]!r}; "
                               "runpy.run_module('thaw_vllm.shims', run_name='__main__')"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert told.stdout.strip() == DIRECTORY
