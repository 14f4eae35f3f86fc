"""LLM and SamplingParams: vLLM's names on thaw's engine, and forks of what it holds."""

import json
import subprocess

import engines
import pytest
import thaw_vllm
from conftest import BUILD, ROOT
from engines import TRUNK, tiny
from thaw_vllm import agentfs, kv_snapshot, rewind
from thaw_vllm.errors import (
    BlockPoolTooSmallError,
    BlockShapeMismatchError,
    ForkBranchError,
    ForkError,
    ModelMismatchError,
    PrefixCachingDisabledError,
    UnfinishedRequestsError,
)
from thaw_vllm.fork import ForkHandle, checkout, fork_completions
from thaw_vllm.llm import LLM
from thaw_vllm.recorder import Recorder, ShapeTrace, shape_signature
from thaw_vllm.rollouts import capture_rollouts
from thaw_vllm.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=6)


@pytest.fixture(scope="module", params=["in process", "on a server"])
def llm(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THAW_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        if request.param == "on a server":
            server = engines.ServerLLM()
            yield server.llm
            server.close()
        else:
            if not engines.has_core():
                pytest.skip("thaw_vllm._core is not built")
            with engines.in_process() as made:
                yield made


@pytest.fixture
def other(llm, tmp_path_factory):
    """Another engine on the same model, with nothing in its cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THAW_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        if llm._engine is None:
            server = engines.ServerLLM()
            yield server.llm
            server.close()
        else:
            with engines.in_process() as made:
                yield made


def texts(outputs):
    return [[choice.text for choice in output.outputs] for output in outputs]


def test_generate_takes_what_vllms_does(llm):
    tokenizer = llm.get_tokenizer()
    ids = tokenizer.encode("A river")
    alone = llm.generate("A river", GREEDY)
    assert len(alone) == 1 and alone[0].prompt == "A river" and alone[0].prompt_token_ids == ids
    (choice,) = alone[0].outputs
    assert len(choice.token_ids) == 6 and choice.finish_reason == "length" and choice.index == 0
    assert tokenizer.decode(choice.token_ids) == choice.text
    for prompts in (
        ["A river"], ids, [ids], {"prompt": "A river"}, [{"prompt_token_ids": ids}], [{"prompt": "A river"}],
    ):  # fmt: skip
        assert texts(llm.generate(prompts, GREEDY)) == texts(alone)
    assert texts(llm.generate(prompt_token_ids=[ids], sampling_params=GREEDY)) == texts(alone)
    both = llm.generate(["A river", "Snow"], [GREEDY, SamplingParams(temperature=0, max_tokens=2)])
    assert [len(output.outputs[0].token_ids) for output in both] == [6, 2]
    assert llm.generate([], GREEDY) == []
    for wrong in (5, [None], {"text": "x"}):
        with pytest.raises(TypeError, match="prompt"):
            llm.generate(wrong, GREEDY)
    with pytest.raises(ValueError, match="1 sampling_params"):
        llm.generate(["a", "b"], [GREEDY])


def test_prompts_that_share_a_trunk_compute_it_once(llm):
    llm.reset_prefix_cache()
    before = llm.status()["workers"][0]["stats"]["tokens_prefilled"]
    outputs = llm.generate([TRUNK + end for end in ("one", "two", "three", "four")], GREEDY)
    trunk = len(llm.get_tokenizer().encode(TRUNK))
    assert sum(output.num_cached_tokens >= trunk - 2 for output in outputs) == 3
    prefilled = llm.status()["workers"][0]["stats"]["tokens_prefilled"] - before
    assert prefilled < trunk + 40
    # And each is what it is alone.
    for output in outputs:
        llm.reset_prefix_cache()
        assert texts(llm.generate(output.prompt, GREEDY)) == texts([output])


def test_choices_logprobs_and_seeds(llm):
    params = SamplingParams(n=3, temperature=1.0, max_tokens=4, logprobs=2, seed=7, prompt_logprobs=1)
    (output,) = llm.generate("A river", params)
    assert [choice.index for choice in output.outputs] == [0, 1, 2]
    assert len({tuple(choice.token_ids) for choice in output.outputs}) == 3
    for choice in output.outputs:
        assert len(choice.logprobs) == len(choice.token_ids)
        total = 0.0
        for token, place in zip(choice.token_ids, choice.logprobs, strict=True):
            assert 2 <= len(place) <= 3 and place[token].logprob <= 0
            assert place[token].decoded_token == llm.get_tokenizer().decode([token])
            assert min(entry.rank for entry in place.values() if entry.rank) == 1
            total += place[token].logprob
        assert choice.cumulative_logprob == pytest.approx(total)
    assert output.prompt_logprobs[0] is None and len(output.prompt_logprobs) == len(output.prompt_token_ids)
    assert texts(llm.generate("A river", params)) == texts([output])
    assert llm.generate("A river", {"max_tokens": 2, "stop": [" "]})[0].outputs[0].text.count(" ") == 0
    # Without max_tokens: what fits.
    short = SamplingParams(max_tokens=None, temperature=0, stop=["e"])
    assert llm.generate("A river", short)[0].outputs[0].finish_reason in ("stop", "length")


def test_parameters_that_cannot_be_are_value_errors():
    for wrong in (
        {"n": 0}, {"temperature": -1}, {"top_p": 0}, {"top_k": -2}, {"max_tokens": 0}, {"logprobs": 21},
        {"min_tokens": 20}, {"best_of": 1, "n": 2}, {"repetition_penalty": 0}, {"detokenize": False},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SamplingParams(**wrong)
    assert SamplingParams.from_optional(n=None, seed=3) == SamplingParams(seed=3)
    copy = SamplingParams(stop=["a"]).clone()
    assert copy.all_stop == ["a"] and SamplingParams(stop="a").all_stop == ["a"]
    with pytest.raises(TypeError):
        SamplingParams(temprature=1)


def test_one_prompts_error_is_its_own(llm):
    outcomes = llm.generate_each(["A river", "x" * 40000, "Snow"], GREEDY)
    assert isinstance(outcomes[1], thaw_vllm.ContextLengthError) and "context" in str(outcomes[1])
    assert outcomes[0].outputs[0].text and outcomes[2].outputs[0].text
    with pytest.raises(ValueError, match="context"):
        llm.generate(["A river", "x" * 40000], GREEDY)


def test_the_tokenizer_has_the_names_of_hugging_faces(llm):
    tokenizer = llm.get_tokenizer()
    ids = tokenizer.encode("Snow keeps the shape")
    assert tokenizer.decode(ids) == "Snow keeps the shape" and tokenizer.decode(ids[0]) == tokenizer.text_of(
        ids[0]
    )
    assert tokenizer(["Snow", "ice"])["input_ids"] == [tokenizer.encode("Snow"), tokenizer.encode("ice")]
    assert tokenizer("Snow")["attention_mask"] == [1] * len(tokenizer.encode("Snow"))
    assert "".join(tokenizer.tokenize("Snow keeps")) == "Snow keeps"
    assert tokenizer.batch_decode([ids]) == ["Snow keeps the shape"]
    assert tokenizer.vocab_size == len(tokenizer) == 520
    messages = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.encode(text) == tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert tokenizer.decode([1, *tokenizer.encode("hi"), 2], skip_special_tokens=True) == "hi"
    (said,) = llm.chat(messages, GREEDY)
    assert texts([said]) == texts(llm.generate(text, GREEDY))


def test_the_engine_says_what_scripts_ask(llm):
    config = llm.llm_engine.vllm_config
    assert config.model_config.model == str(tiny()) and config.model_config.max_model_len == 8192
    assert config.model_config.get_vocab_size() == 520
    assert config.parallel_config.tensor_parallel_size == 1
    assert config.cache_config.block_size == 16 and config.cache_config.num_gpu_blocks > 100
    assert llm.llm_engine.has_unfinished_requests() is False
    assert kv_snapshot._get_engine_core(llm) is llm.llm_engine
    assert llm.get_default_sampling_params().temperature == 1.0
    with pytest.raises(ForkError, match="no Python"):
        llm.collective_rpc(print)


def test_a_fork_brings_its_kv_to_another_engine(llm, other, tmp_path):
    expected = texts(llm.generate(TRUNK + "one", GREEDY))
    with thaw_vllm.fork(llm, prompt=TRUNK, label="trunk") as handle:
        tokens = len(llm.get_tokenizer().encode(TRUNK))
        assert handle.prefix_tokens == tokens // 16 * 16 and handle.num_kv_blocks == tokens // 16
        assert handle.block_shape == [2, 16, 2, 16] and handle.num_layers == 3
        assert handle.prefix_preview == TRUNK[:1500] and len(handle.prefix_token_ids) == tokens
        command = [str(BUILD / "bin" / "thaw"), "inspect", handle.state_dir, "--verify", "--json"]
        told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        assert told["checksums"] == "right" and told["handle_id"] == handle.handle_id
        assert agentfs.summarize_handle(handle.state_dir)["label"] == "trunk"
        child = handle.branch(tmp_path / "child", label="child")
    hydrated = checkout(child, other)
    assert hydrated["weights_restored"] is False
    assert hydrated["kv"]["num_blocks"] == child.num_kv_blocks and hydrated["kv"]["total_bytes"] > 0
    (output,) = other.generate(TRUNK + "one", GREEDY)
    assert output.num_cached_tokens >= child.prefix_tokens and texts([output]) == expected
    other.reset_prefix_cache()
    assert other.generate(TRUNK + "two", GREEDY)[0].num_cached_tokens == 0


def test_a_fork_without_a_prompt_is_of_the_last_answer(llm):
    llm.reset_prefix_cache()
    with thaw_vllm.fork(llm) as empty:
        assert (empty.num_kv_blocks, empty.prefix_tokens, empty.max_block_id) == (0, 0, -1)
        assert empty.hydrate(llm)["kv"]["num_blocks"] == 0
        assert ForkHandle.load(empty.state_dir).num_kv_blocks == 0
    (output,) = llm.generate(TRUNK, GREEDY)
    with thaw_vllm.checkpoint(llm, parent_id="p") as handle:
        assert handle.prefix_token_ids == output.prompt_token_ids + output.outputs[0].token_ids
        assert handle.parent_id == "p"
    # What was never computed is computed then.
    with thaw_vllm.fork(llm, prompt_token_ids=list(range(5, 55))) as fresh:
        assert fresh.num_kv_blocks == 3


def test_kv_files(llm, other, tmp_path):
    tokens = len(llm.generate(TRUNK, GREEDY)[0].prompt_token_ids)
    stats = thaw_vllm.freeze_kv_cache(llm, tmp_path / "trunk.thawkv")
    assert stats["num_blocks"] == len(stats["block_ids"]) and stats["total_bytes"] > 0
    data = bytearray((tmp_path / "trunk.thawkv").read_bytes())
    data[9000] ^= 1
    (tmp_path / "bad.thawkv").write_bytes(data)
    (tmp_path / "bad.thawkv.meta").write_bytes((tmp_path / "trunk.thawkv.meta").read_bytes())
    with pytest.raises(ForkError, match="did not take up"):
        thaw_vllm.restore_kv_cache(other, tmp_path / "bad.thawkv")
    restored = thaw_vllm.restore_kv_cache_tp(other, tmp_path / "trunk.thawkv")
    assert (restored["num_blocks"], restored["tensor_parallel_size"]) == (stats["num_blocks"], 1)
    assert other.generate(TRUNK, GREEDY)[0].num_cached_tokens >= tokens - 1
    with pytest.raises(FileNotFoundError):
        thaw_vllm.restore_kv_cache(other, tmp_path / "none.thawkv")


def test_forks_that_cannot_be(llm, tmp_path, monkeypatch):
    golden = ForkHandle.load(ROOT / "tests" / "data" / "handle" / "trunk")
    with pytest.raises(ModelMismatchError):
        golden.hydrate(llm)
    golden.model_id = "elsewhere/" + tiny().name
    with pytest.raises(BlockShapeMismatchError, match="another engine"):
        golden.hydrate(llm)
    golden.num_kv_blocks = 10**7
    with pytest.raises(BlockPoolTooSmallError):
        golden.hydrate(llm)
    monkeypatch.setattr(llm, "_running", 1)
    with pytest.raises(UnfinishedRequestsError):
        thaw_vllm.fork(llm)
    monkeypatch.undo()
    monkeypatch.setattr(llm.llm_engine.cache_config, "enable_prefix_caching", False)
    with pytest.raises(PrefixCachingDisabledError):
        thaw_vllm.fork(llm)
    with pytest.raises(ForkError, match="offers no KV"):
        thaw_vllm.fork(object())


def test_completions_in_place(llm):
    prompts = [TRUNK + "one", TRUNK + "two"]
    results = fork_completions(llm, prompts, GREEDY)
    assert [result.text for result in results] == [t[0] for t in texts(llm.generate(prompts, GREEDY))]
    assert {result.mode for result in results} == {"same_process"}
    (many,) = fork_completions(llm, TRUNK, SamplingParams(n=3, max_tokens=3, seed=1))
    assert len(many.choices) == 3 and many.choices[0][:2] == (many.text, many.token_ids)
    with pytest.raises(ForkError, match="give one"):
        fork_completions(llm, prompts, GREEDY, workers=1, pool=object())
    with pytest.raises(ForkError, match="at least 1"):
        fork_completions(llm, prompts, GREEDY, workers=0)
    with thaw_vllm.fork(llm, prompt=TRUNK) as handle:
        assert fork_completions(llm, prompts, GREEDY, handle=handle)[0].text == results[0].text
        with pytest.raises(ForkError, match="handle with weights"):
            fork_completions(llm, prompts, GREEDY, handle=handle, workers=1)


def test_rollouts_are_written_for_rewind(llm, tmp_path):
    params = SamplingParams(temperature=1.0, max_tokens=5, seed=3)
    with thaw_vllm.fork(llm, prompt=TRUNK) as handle:
        paths = capture_rollouts(llm, TRUNK, params, out_dir=tmp_path, n=3, handle=handle, logprobs=2)
    assert [path.split("/")[-2] for path in paths] == ["rollout-0", "rollout-1", "rollout-2"]
    assert params.n == 1 and params.logprobs is None  # the caller's
    found = rewind.summarize_rollout(paths[0])
    assert (found["n_tokens"], found["n_scored"], found["sampling"]["n"]) == (5, 5, 3)
    assert found["parent_id"] == handle.handle_id and len(found["tokens"][0]["topk"]) == 2
    assert len(rewind.trace_rollouts(tmp_path)["groups"][0]["rollouts"]) == 3
    assert "best branch" in rewind.pivot_rollouts(tmp_path)
    with pytest.raises(ValueError, match="1 labels for 2"):
        capture_rollouts(llm, TRUNK, params, out_dir=tmp_path, n=2, labels=["a"])


def test_a_recorder_notes_shapes_and_no_tokens(llm, tmp_path):
    with Recorder(llm) as recorder:
        llm.generate(["A river", TRUNK], GREEDY)
    llm.generate("Snow", GREEDY)
    trace = recorder.stop()
    assert len(trace.req_meta) == 2 and len(trace.steps) == 12
    name = next(iter(trace.req_meta))
    assert trace.num_sampled(name) == 6 and len(trace.steps_for(name)) == 6
    assert trace.save(tmp_path / "trace.json") == trace.certificate_bytes()
    again = ShapeTrace.load(tmp_path / "trace.json")
    assert again == trace and shape_signature(again) == shape_signature(trace, "no such request")
    assert trace.dummy_spec(exclude={name})[0]["num_sampled"] == 6
    assert "river" not in (tmp_path / "trace.json").read_text()


def test_an_engine_without_a_cache_keeps_nothing(tmp_path, monkeypatch):
    if not engines.has_core():
        pytest.skip("thaw_vllm._core is not built")
    monkeypatch.setenv("THAW_CACHE_DIR", str(tmp_path))
    with pytest.warns(UserWarning, match="enforce_eager, gpu_memory_utilization"):
        made = engines.in_process(enable_prefix_caching=False, gpu_memory_utilization=0.5, enforce_eager=True)
    with made as llm:
        llm.generate(TRUNK, GREEDY)
        assert llm.generate(TRUNK, GREEDY)[0].num_cached_tokens == 0
        with pytest.raises(PrefixCachingDisabledError):
            thaw_vllm.fork(llm)
    with pytest.raises(ValueError, match="no-such-flag"):
        engines.in_process(no_such_flag=1)
    with pytest.raises(ValueError, match="a server has its own"):
        LLM(base_url="http://127.0.0.1:1/v1", kv_bytes="1MiB")
    assert issubclass(ForkBranchError, ForkError)
