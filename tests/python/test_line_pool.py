"""ForkPool(worker_cmd=...): rounds on fake workers that are good, slow, dead, or lie."""

import json
import os
import pathlib
import sys
import threading
import time
import types

import pytest
import thaw_handle
from thaw_vllm import _line_worker
from thaw_vllm.errors import (
    ForkBranchError,
    ForkError,
    ForkPoolError,
    WorkerBootTimeout,
    WorkerDead,
    WorkerProtocolError,
)
from thaw_vllm.fork import ForkHandle
from thaw_vllm.fork_pool import ForkPool

FAKE = str(pathlib.Path(__file__).with_name("fake_worker.py"))


@pytest.fixture
def handle(tmp_path):
    files = thaw_handle.handle_files("h", list(range(12)))
    return ForkHandle.load(thaw_handle.write(tmp_path / "handle", files))


@pytest.fixture
def pool(tmp_path):
    """pool(mode, workers) -> a running ForkPool of fakes; all are closed, and none may be left."""
    made = []

    def start(mode="good", workers=2, reply_timeout_s=30.0, boot_timeout_s=30.0, **keywords):
        one = ForkPool(worker_cmd=[sys.executable, FAKE, mode], reply_timeout_s=reply_timeout_s)
        env = {"FAKE_LOG": str(tmp_path / "log"), "FAKE_MARK": str(tmp_path / "mark")}
        made.append(one)
        one.init_pool("org/tiny", workers, boot_timeout_s=boot_timeout_s, env=env, **keywords)
        return one

    yield start
    for one in made:
        pids = [slot.pid for slot in one.slots]
        one.close(5)
        assert not any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids)


def requests(tmp_path, op):
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    return [line for line in lines if line["op"] == op]


def test_a_round_deals_prompts_and_keeps_their_order(pool, handle, tmp_path):
    running = pool(max_model_len=2048, trust_remote_code=True)
    prompts = [f"prompt {i}" for i in range(5)]
    results = running.fork_completions(
        None, prompts, {"temperature": 0, "seed": None}, handle=handle, extra_op_fields={"tag": 7}
    )
    assert [r.text for r in results] == [p.upper() for p in prompts]
    assert [r.prompt for r in results] == prompts
    assert [r.worker_index for r in results] == [0, 1, 0, 1, 0]
    assert {r.mode for r in results} == {"subprocess"} and all(r.error is None for r in results)
    (boot, _) = requests(tmp_path, "boot")
    assert (boot["model"], boot["max_model_len"], boot["llm_kwargs"]) == (
        "org/tiny", 2048, {"trust_remote_code": True},
    )  # fmt: skip
    hydrated = requests(tmp_path, "hydrate")
    assert len(hydrated) == len(requests(tmp_path, "reset")) == 2
    assert all(line["kv_path"] == handle.kv_path and line["tag"] == 7 for line in hydrated)
    assert requests(tmp_path, "generate")[0]["sampling_params"] == {"temperature": 0}
    status = running.status()
    assert status["model"] == "org/tiny" and not status["closed"]
    assert [(w["id"], w["boot_s"], w["busy"], w["dead"]) for w in status["workers"]] == [
        (0, 0.25, False, False),
        (1, 0.25, False, False),
    ]
    # Fewer prompts than workers use as many workers.
    assert len(running.fork_completions(None, "one", None)) == 1
    assert running.fork_completions(None, [], None) == []


def test_all_n_choices_come_back_or_an_error(pool):
    params = types.SimpleNamespace(n=3, temperature=1.0)
    (result,) = pool().fork_completions(None, ["x"], params)
    assert [choice[0] for choice in result.choices] == ["X 0", "X 1", "X 2"] and result.text == "X 0"
    with pytest.raises(ForkBranchError, match="1 of 3 choices"):
        pool("single").fork_completions(None, ["x"], params)


@pytest.mark.parametrize("fault, error", [
    ("hang", WorkerBootTimeout), ("die", WorkerDead), ("exit", WorkerDead), ("garbage", WorkerProtocolError),
    ("error", ForkPoolError), ("strange", WorkerProtocolError), ("list", WorkerProtocolError),
])  # fmt: skip
def test_a_worker_that_does_not_boot(pool, fault, error):
    with pytest.raises(error) as caught:
        pool(f"{fault}-boot", boot_timeout_s=1.0 if fault == "hang" else 30.0)
    assert type(caught.value) is error
    if fault == "error":
        assert caught.value.type_name == "ValueError" and caught.value.traceback == "T"


@pytest.mark.parametrize("op", ["hydrate", "generate"])
@pytest.mark.parametrize("fault, error", [
    ("hang", WorkerDead), ("die", WorkerDead), ("garbage", WorkerProtocolError),
    ("twice", WorkerProtocolError), ("list", WorkerProtocolError), ("strange", WorkerProtocolError),
    ("error", ForkPoolError),
])  # fmt: skip
def test_a_fault_in_a_round_is_typed_and_ends(pool, handle, op, fault, error):
    running = pool(f"{fault}-{op}", workers=1, reply_timeout_s=1.0 if fault == "hang" else 30.0)
    results = running.fork_completions(None, ["a"], None, handle=handle, return_errors=True)
    assert type(results[0].error) is error and results[0].text == ""


@pytest.mark.parametrize("fault", ["fewer", "shapeless"])
def test_outputs_that_are_none(pool, fault):
    with pytest.raises(ForkBranchError, match="WorkerProtocolError") as caught:
        pool(f"{fault}-generate").fork_completions(None, ["a", "b", "c"], None)
    assert [type(r.error) for r in caught.value.results] == [WorkerProtocolError] * 3


@pytest.mark.parametrize("op", ["hydrate", "generate", "reset"])
def test_a_dead_worker_is_replaced_and_nothing_is_lost(pool, handle, op):
    running = pool(f"dieonce-{op}")
    before = [slot.pid for slot in running.slots]
    results = running.fork_completions(None, ["a", "b", "c", "d"], None, handle=handle)
    assert [r.text for r in results] == ["A", "B", "C", "D"]
    results = running.fork_completions(None, ["e", "f"], None, handle=handle)
    assert [r.text for r in results] == ["E", "F"]
    after = [slot.pid for slot in running.slots]
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
    assert not any(slot.dead for slot in running.slots)


@pytest.mark.parametrize("mode, error", [("picky", ForkPoolError), ("fatal", WorkerDead)])
def test_one_branch_hurts_itself_only(pool, mode, error):
    running = pool(mode)
    prompts = ["a", "b", "bad", "c", "d"]
    with pytest.raises(ForkBranchError, match="branch 2 of 5 failed") as caught:
        running.fork_completions(None, prompts, None)
    results = caught.value.results
    assert [r.text for r in results] == ["A", "B", "", "C", "D"]
    assert type(results[2].error) is error
    assert [r.error is None for r in results] == [True, True, False, True, True]
    assert [r.text for r in running.fork_completions(None, ["x", "y"], None)] == ["X", "Y"]


def test_a_wait_is_as_long_as_it_was_given(pool, monkeypatch):
    monkeypatch.setattr(_line_worker, "_MAX_POLL_S", 0.0)  # each of the waits that it is made of
    assert pool().fork_completions(None, ["a"], None)[0].text == "A"


def test_close_then_init_works_again(pool, tmp_path):
    running = pool()
    with pytest.raises(ForkPoolError, match="running"):
        running.init_pool("org/tiny")
    first = [slot.pid for slot in running.slots]
    running.close(5)
    running.close()
    assert running.status() == {"model": "org/tiny", "closed": True, "workers": []}
    assert len(requests(tmp_path, "shutdown")) == 2
    with pytest.raises(ForkPoolError, match="init_pool"):
        running.fork_completions(None, ["a"], None)
    running.init_pool("org/tiny", 1)
    assert running.slots[0].pid not in first
    assert running.fork_completions(None, ["a"], None)[0].text == "A"


def test_close_ends_workers_that_hang(pool):
    running = pool("hang-shutdown")
    pids = [slot.pid for slot in running.slots]
    started = time.monotonic()
    running.close(0.5)
    assert time.monotonic() - started < 30
    assert not any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids)


def test_close_ends_a_round_that_runs(pool):
    running = pool("hang-generate")
    pids = [slot.pid for slot in running.slots]
    caught = []

    def fan_out():
        try:
            running.fork_completions(None, ["a", "b", "c"], None)
        except ForkBranchError as error:
            caught.append(error)

    thread = threading.Thread(target=fan_out)
    thread.start()
    deadline = time.monotonic() + 20
    while not all(slot.busy for slot in running.slots) and time.monotonic() < deadline:
        time.sleep(0.001)
    running.close(0.2)
    thread.join(20)
    assert not thread.is_alive() and len(caught) == 1
    assert all(isinstance(result.error, WorkerDead) for result in caught[0].results)
    assert not any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_pool_that_is_dropped_leaves_no_process():
    running = ForkPool(worker_cmd=[sys.executable, FAKE])
    running.init_pool("org/tiny", 2)
    pids = [slot.pid for slot in running.slots]
    del running
    assert not any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_forked_child_harms_no_worker_of_its_parents(pool):
    running = pool()
    child = os.fork()
    if child == 0:
        try:
            running.fork_completions(None, ["a"], None)
        except ForkPoolError:
            running.close()
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert running.fork_completions(None, ["a"], None)[0].text == "A"


def test_arguments_that_cannot_be():
    with pytest.raises(ValueError, match="empty"):
        ForkPool(worker_cmd=[])
    with pytest.raises(ValueError, match="reply_timeout_s"):
        ForkPool(reply_timeout_s=0)
    with pytest.raises(ForkPoolError, match="workers is 0"):
        ForkPool(worker_cmd=["x"]).init_pool("m", 0)
    with pytest.raises(WorkerDead, match="cannot start"):
        ForkPool(worker_cmd=["/nonexistent/worker"]).init_pool("m")
    assert issubclass(ForkPoolError, ForkError) and issubclass(ForkError, RuntimeError)
