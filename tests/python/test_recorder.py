"""Recorder and ShapeTrace on a scheduler by vLLM's names: shapes, and no token's content."""

import types

import pytest
from thaw_vllm.recorder import Recorder, ShapeTrace, req_id_matches, shape_signature


class Scheduler:
    """Says what it is given, in turn."""

    def __init__(self, *outputs):
        self._outputs = list(outputs)

    def schedule(self):
        return self._outputs.pop(0)


def step(tokens, new=(), cached=()):
    return types.SimpleNamespace(
        num_scheduled_tokens=tokens,
        total_num_scheduled_tokens=sum(tokens.values()),
        scheduled_new_reqs=[
            types.SimpleNamespace(req_id=name, num_computed_tokens=done, prompt_token_ids=[7] * length)
            for name, length, done in new
        ],
        scheduled_cached_reqs=types.SimpleNamespace(
            req_ids=[name for name, _ in cached], num_computed_tokens=[done for _, done in cached]
        ),
    )


def engine(scheduler):
    inner = types.SimpleNamespace(engine_core=types.SimpleNamespace(scheduler=scheduler))
    return types.SimpleNamespace(llm_engine=types.SimpleNamespace(engine_core=inner))


def test_steps_are_noted_as_they_are_scheduled():
    scheduler = Scheduler(
        step({"4-ab": 512}, new=[("4-ab", 700, 0)]),
        step({}),
        step({"4-ab": 188, "5-cd": 20}, new=[("5-cd", 120, 100)], cached=[("4-ab", 512)]),
        step({"4-ab": 1, "5-cd": 1}, cached=[("4-ab", 700), ("5-cd", 120)]),
        step({"9": 1}),
    )
    recorder = Recorder(engine(scheduler))
    with recorder, pytest.raises(RuntimeError, match="started already"):
        for _ in range(4):
            scheduler.schedule()
        recorder.start()
    assert "schedule" not in vars(scheduler)
    scheduler.schedule()
    trace = recorder.stop()
    assert [one["reqs"] for one in trace.steps] == [
        {"4-ab": [512, 0]},
        {"4-ab": [188, 512], "5-cd": [20, 100]},
        {"4-ab": [1, 700], "5-cd": [1, 120]},
    ]
    assert trace.req_meta == {"4-ab": {"prompt_len": 700}, "5-cd": {"prompt_len": 120}}
    assert (trace.num_sampled("4"), trace.num_sampled("5-cd"), len(trace.steps_for("5"))) == (2, 2, 2)
    assert trace.dummy_spec(exclude={"4"}) == [{"req_id": "5-cd", "prompt_len": 120, "num_sampled": 2}]
    with pytest.raises(RuntimeError, match="VLLM_ENABLE_V1_MULTIPROCESSING"):
        Recorder(types.SimpleNamespace(llm_engine=types.SimpleNamespace()))


def test_signatures_know_shapes_and_not_names():
    one, two = ShapeTrace(), ShapeTrace()
    one.add_step({"a": [50, 0], "b": [200, 0]}, 250)
    two.add_step({"x": [200, 0], "y": [50, 0]}, 250)
    assert shape_signature(one) == shape_signature(two)
    assert shape_signature(one, "a") == shape_signature(two, "y") != shape_signature(two, "x")
    assert req_id_matches("16-ab", "16") and not req_id_matches("16-ab", "1")


def test_files_and_what_cannot_be(tmp_path):
    trace = ShapeTrace(header={"model": "m"})
    trace.note_request("r", 64)
    trace.add_step({"r": [64, -1]}, 64)
    trace.add_step({"r": [1, -1]}, 1)
    assert trace.num_sampled("r") == 1  # without computed counts the prompt's last step is not seen
    assert (
        trace.save(tmp_path / "t.json") == trace.certificate_bytes() == (tmp_path / "t.json").stat().st_size
    )
    assert ShapeTrace.load(tmp_path / "t.json") == trace
    with pytest.raises(ValueError, match="version is 2"):
        ShapeTrace.from_dict({**trace.to_dict(), "version": 2})
    for wrong in ({}, {"r": [0, 1]}, {"r": [1]}):
        with pytest.raises(ValueError, match="a step of"):
            trace.add_step(wrong, 1)
