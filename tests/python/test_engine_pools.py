"""What owns engines of this process: ForkPool, cold workers, EnginePool and its ASGI application, sleep."""

import asyncio
import dataclasses
import gc
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

import engines
import httpx
import pytest
import thaw_vllm
from conftest import BUILD, ROOT
from engines import SETTINGS, TRUNK, tiny
from processes import wait_until
from thaw_vllm import sleep_mode
from thaw_vllm.errors import ForkBranchError, ForkPoolError
from thaw_vllm.fork import fork_completions
from thaw_vllm.fork_pool import ForkPool, own_worker_command
from thaw_vllm.pool import EnginePool
from thaw_vllm.sampling_params import SamplingParams
from thaw_vllm.server import create_app, create_pool_app

pytestmark = pytest.mark.skipif(not engines.has_core(), reason="thaw_vllm._core is not built")
GREEDY = SamplingParams(temperature=0, max_tokens=6)
PROMPTS = [TRUNK + end for end in ("one", "two", "three", "four")]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THAW_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("THAW_BINARY", str(BUILD / "bin" / "thaw"))
        yield


@pytest.fixture(scope="module")
def llm(cache):
    with engines.in_process() as made:
        yield made


@pytest.fixture(scope="module")
def expected(llm):
    return [output.outputs[0].text for output in llm.generate(PROMPTS, GREEDY)]


@pytest.fixture(scope="module")
def pool(cache):
    with ForkPool(reply_timeout_s=120) as made:
        made.init_pool(str(tiny()), workers=2, **SETTINGS)
        yield made


def gone(pids):
    """Whether these processes end within a few seconds."""
    deadline = time.monotonic() + 20
    while any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_pool_completes_branches_as_the_engine_does(llm, pool, expected):
    results = fork_completions(llm, PROMPTS, GREEDY, pool=pool)
    assert [result.text for result in results] == expected
    assert {(result.mode, result.worker_index) for result in results} == {("subprocess", -1)}
    (many,) = pool.fork_completions(None, PROMPTS[:1], SamplingParams(n=3, max_tokens=4, seed=1))
    assert len(many.choices) == 3
    status = pool.status()
    assert status["model"] == str(tiny()) and not status["closed"] and len(status["workers"]) == 2
    assert all(worker["pid"] > 0 and not worker["dead"] for worker in status["workers"])
    assert pool.slots[1].id == 1 and pool.slots[0].boot_s > 0


def test_a_pool_takes_up_a_handle(llm, pool, expected):
    long = TRUNK * 3
    with thaw_vllm.fork(llm, prompt=long) as handle:
        results = pool.fork_completions(llm, [long + "x", long + "y"], GREEDY, handle=handle)
        assert [result.raw.num_cached_tokens >= handle.prefix_tokens for result in results] == [True, True]
        alone = llm.generate([long + "x", long + "y"], GREEDY)
        assert [result.text for result in results] == [output.outputs[0].text for output in alone]
    # And what the engine holds, without being told.
    llm.generate(TRUNK * 4, GREEDY)
    (result,) = pool.fork_completions(llm, [TRUNK * 4 + "z"], GREEDY)
    assert result.raw.num_cached_tokens > 1000


def test_a_killed_worker_of_a_pool_costs_nothing(pool, expected):
    victim = pool.slots[0].pid
    os.kill(victim, signal.SIGKILL)
    results = pool.fork_completions(None, PROMPTS, GREEDY)
    assert [result.text for result in results] == expected
    deadline = time.monotonic() + 30
    while any(slot.dead for slot in pool.slots) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert victim not in [slot.pid for slot in pool.slots] and not any(slot.dead for slot in pool.slots)


def test_one_branch_of_a_pool_fails_alone(pool, expected):
    with pytest.raises(ForkBranchError, match="branch 1 of 3 failed: ForkPoolError: .*context") as caught:
        pool.fork_completions(None, [PROMPTS[0], "x" * 40000, PROMPTS[2]], GREEDY)
    assert [result.text for result in caught.value.results] == [expected[0], "", expected[2]]
    assert isinstance(caught.value.results[1].error, ForkPoolError)


def test_a_pool_ends_and_begins_again():
    pool = ForkPool()
    with pytest.raises(ForkPoolError, match="init_pool"):
        pool.fork_completions(None, ["x"], GREEDY)
    for workers in (1, 2):
        pool.init_pool(str(tiny()), workers, **SETTINGS)
        pids = [slot.pid for slot in pool.slots]
        assert len(pids) == workers and pool.fork_completions(None, ["x"], GREEDY)[0].text
        pool.close()
        assert gone(pids) and pool.status()["closed"]
    with pytest.raises(ValueError, match="no-such-flag"):
        pool.init_pool(str(tiny()), 1, no_such_flag=1)
    with pytest.raises((ValueError, OSError)):
        pool.init_pool("/nonexistent.gguf", 1)
    assert pool.status()["closed"]


def test_fifty_pools_leave_nothing(tmp_path, monkeypatch):
    """Their shared memory is descriptors, too."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def held():
        gc.collect()
        return [len(os.listdir(place)) for place in ("/proc/self/fd", "/proc/self/task", tmp_path)]

    before, pids = None, []
    for count in range(50):
        with ForkPool() as pool:
            pool.init_pool(str(tiny()), 1, **SETTINGS)
            assert pool.fork_completions(None, ["x"], SamplingParams(max_tokens=1))[0].error is None
            pids += [slot.pid for slot in pool.slots]
        del pool
        if count == 1:
            before = held()
    # Fewer is well: what tests before this one left may end meanwhile.
    assert all(now <= then for now, then in zip(held(), before)) and gone(pids)


def test_forks_of_the_process_and_its_end(tmp_path):
    script = (
        "import os, sys, threading, time\n"
        "from thaw_vllm import LLM, fork\n"
        f"llm = LLM({str(tiny())!r}, kv_bytes='64MiB', threads=1)\n"
        "handle = fork(llm, prompt='Snow keeps the shape of the field beneath it.' * 9)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try:\n        llm.generate('x')\n"
        "    except RuntimeError as error:\n        print('forked', flush=True)\n"
        "    sys.exit(0)\n"  # with its finalizers
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert os.path.exists(handle.kv_path) and llm.generate('x', {'max_tokens': 2})\n"
        "more = {'max_tokens': 5000, 'ignore_eos': True}\n"
        "threading.Thread(target=llm.generate, args=('x', more), daemon=True).start()\n"
        "while not llm.llm_engine.has_unfinished_requests():\n    time.sleep(0.001)\n"
        "print(*[worker['pid'] for worker in llm.status()['workers']], handle.state_dir, llm._scratch)\n"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    pid, *folders = last.split()
    assert first == "forked" and gone([int(pid)])
    assert not any(os.path.exists(folder) for folder in folders)


def test_cold_workers_and_the_json_lines_of_our_own(llm, expected, tmp_path):
    results = fork_completions(llm, PROMPTS[:2], GREEDY, workers=2, extra_env={"THAW_LOG_LEVEL": "error"})
    assert [result.text for result in results] == expected[:2]
    assert [result.worker_index for result in results] == [0, 1]
    with thaw_vllm.fork(llm, include_weights=True, prompt=TRUNK) as handle:
        assert handle.weights_path and thaw_vllm.ForkHandle.load(handle.state_dir).weights_path
        cold = fork_completions(llm, PROMPTS[:2], GREEDY, workers=1, handle=handle)
        assert [result.text for result in cold] == expected[:2]
        # Where only the handle's weights are, they are loaded, and the trunk is computed again.
        gone_model = dataclasses.replace(handle, model_id="/nonexistent/tiny", _owns_state_dir=False)
        cold = fork_completions(llm, PROMPTS[:2], GREEDY, workers=1, handle=gone_model)
        assert [result.text for result in cold] == expected[:2]
        with ForkPool(worker_cmd=own_worker_command()) as pool:
            pool.init_pool(str(tiny()), 1, threads=1, kv_bytes="64MiB")
            two = pool.fork_completions(
                None, PROMPTS[:2], SamplingParams(n=2, max_tokens=3, seed=5), handle=handle
            )
            assert [len(result.choices) for result in two] == [2, 2]
            with pytest.raises(ForkBranchError, match="ContextLengthError"):
                pool.fork_completions(None, ["x" * 40000], GREEDY, handle=handle)
            pids = [slot.pid for slot in pool.slots]
        assert gone(pids)


def test_load_starts_from_a_snapshot(llm, expected, tmp_path):
    stats = thaw_vllm.freeze_model_tp(llm, tmp_path / "weights.thaw")
    assert stats["num_regions"] > 10 and stats["total_bytes"] > 100_000 and stats["tensor_parallel_size"] == 1
    weights, kv = str(tmp_path / "weights.thaw"), tmp_path / "trunk.thawkv"
    with thaw_vllm.load(str(tiny()), weights, **SETTINGS) as loaded:
        assert loaded.generate(TRUNK, GREEDY)[0].outputs[0].text
        thaw_vllm.freeze_kv_cache(loaded, kv)
    with thaw_vllm.load(str(tiny()), weights, kv_snapshot=kv, **SETTINGS) as loaded:
        (output,) = loaded.generate(PROMPTS[0], GREEDY)
        assert output.outputs[0].text == expected[0] and output.num_cached_tokens > 200
    with pytest.raises(FileNotFoundError):
        thaw_vllm.load(str(tiny()), str(tmp_path / "none.thaw"))


def test_vllms_way_to_name_a_snapshot(llm, expected, tmp_path):
    weights = str(tmp_path / "weights.thaw")
    thaw_vllm.freeze_model_tp(llm, weights)
    keywords = {"load_format": "thaw", "model_loader_extra_config": {"snapshot": weights}}
    with engines.in_process(**keywords) as loaded:
        assert loaded.generate(PROMPTS[0], GREEDY)[0].outputs[0].text == expected[0]
        assert loaded.settings["snapshot"] == weights
    for wrong in ({"load_format": "thaw"}, {"model_loader_extra_config": {"snapshot": weights}}):
        with pytest.raises(ValueError, match="load_format"):
            engines.in_process(**wrong)


def test_sleep_and_wake(expected, tmp_path):
    path = tmp_path / "asleep.thaw"
    with engines.in_process() as llm:
        pids = [worker["pid"] for worker in llm.status()["workers"]]
        told = sleep_mode.sleep(llm, path)
        assert told["freed_gpu_memory"] and told["gpu_bytes_freed"] > 0 and told["sleep_level"] == 2
        assert gone(pids) and llm.is_sleeping() and path.exists()
        woken = sleep_mode.wake_up(llm, path)
        assert woken["vllm_wake_up_called"] and woken["total_bytes"] == told["total_bytes"]
        assert llm.generate(PROMPTS[0], GREEDY)[0].outputs[0].text == expected[0]
        with pytest.raises(ValueError, match="level is 3"):
            llm.sleep(level=3)
    with pytest.raises(sleep_mode.SleepModeUnavailableError, match="has no sleep"):
        sleep_mode.sleep(object(), path)


def test_a_snapshot_that_is_none_does_not_keep_it_asleep(expected, tmp_path):
    (tmp_path / "none.thaw").write_bytes(b"no snapshot")
    with engines.in_process() as llm:
        llm.sleep()
        with pytest.raises((ValueError, OSError, RuntimeError), match="none.thaw"):
            llm.wake_up(snapshot=tmp_path / "none.thaw")
        assert llm.is_sleeping()
        llm.wake_up()
        assert llm.generate(PROMPTS[0], GREEDY)[0].outputs[0].text == expected[0]


@pytest.mark.parametrize("owner", ["LLM", "ForkPool"])
def test_what_is_closed_stays_closed_and_its_calls_fail(owner):
    endless = SamplingParams(max_tokens=8000, ignore_eos=True)
    pool = ForkPool()
    if owner == "LLM":
        llm = engines.in_process()
        close, run = llm.close, lambda: llm.generate("x", endless)
    else:
        pool.init_pool(str(tiny()), 1, **SETTINGS)
        llm = pool._channel._llm
        close, run = pool.close, lambda: pool.fork_completions(None, ["x"], endless)
    pids = [worker["pid"] for worker in llm.status()["workers"]]
    caught = []

    def call():
        try:
            run()
        except Exception as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    wait_until(lambda: llm.status()["workers"][0]["stats"]["running"])
    close()
    thread.join(60)
    (error,) = caught
    found = error if owner == "LLM" else error.results[0].error.__cause__
    assert isinstance(found, (thaw_vllm.UnavailableError, thaw_vllm.APIConnectionError))
    assert gone(pids) and not llm._engine.has_started and not llm.is_sleeping()
    for later in (llm.status, lambda: llm.generate("x", GREEDY), llm.wake_up):
        with pytest.raises(RuntimeError, match="was closed"):
            later()


def test_an_engine_lives_as_long_as_who_asks_it():
    view = engines.in_process().of_model(tiny().stem)
    pids = [worker["pid"] for worker in view.status()["workers"]]
    gc.collect()
    assert [worker["pid"] for worker in view.status()["workers"]] == pids
    del view
    gc.collect()
    assert gone(pids)


class FakeLLM:
    """The engine of a pool: what it was asked for, and what it refuses."""

    def __init__(self, model="", **settings):
        self.asked = []
        self.refuses = set()

    def status(self):
        return {"registered_models": {"a": "/models/a"}}

    def of_model(self, name):
        if name in self.refuses:
            raise OSError(f"no {name}")
        return (name, len(self.asked))

    def _call(self, method, path, body=None):
        if path in self.refuses:
            raise ValueError(f"no {method} {path}")
        self.asked.append((method, path))

    def close(self):
        pass


@pytest.fixture
def faked(monkeypatch, tmp_path):
    """A pool of one slot with a fake engine and the models "a" and "b"."""
    monkeypatch.setattr(thaw_vllm.pool, "LLM", FakeLLM)
    (tmp_path / "b").write_text("")
    made = EnginePool()
    made.init_pool("a")
    made.register("b", tmp_path / "b")
    return made


async def waiting_for(pool, name):
    task = asyncio.create_task(pool.acquire(name))
    while not pool._waiting:
        await asyncio.sleep(0)
    return task


async def test_a_model_that_goes_while_it_is_waited_for(faked):
    slot = await faked.acquire("a")
    waiting = await waiting_for(faked, "b")
    faked.unregister("b")
    faked.release(slot)
    with pytest.raises(ValueError, match="'b' is not registered"):
        await waiting
    assert not slot.lock.locked()
    assert await asyncio.wait_for(faked.acquire("a"), 60) is slot


async def test_a_slot_that_cannot_be_given_is_free(faked):
    faked.engine.refuses.add("b")
    with pytest.raises(OSError, match="no b"):
        await faked.acquire("b")
    assert (await asyncio.wait_for(faked.acquire("a"), 60)).model_name == "a"


async def test_a_pool_that_closes_while_it_is_waited_for(faked):
    await faked.acquire("a")
    waiting = await waiting_for(faked, "a")
    faked.close()
    for acquiring in (waiting, faked.acquire("a")):
        with pytest.raises(RuntimeError, match="no engine"):
            await asyncio.wait_for(acquiring, 60)


async def test_another_file_under_an_old_name_is_another_model(faked, tmp_path):
    slot = await faked.acquire("b")
    before = slot.llm
    faked.release(slot)
    (tmp_path / "c").write_text("")
    faked.register("b", tmp_path / "c")
    assert faked.status()["slots"] == [{"id": 0, "model": None, "busy": False}]
    again = await faked.acquire("b")
    assert again.snapshot_path == str(tmp_path / "c") and again.llm != before


def test_what_the_engine_does_not_forget_stays(faked):
    faked.engine.refuses.add("/admin/snapshots/a")
    with pytest.raises(ValueError, match="no DELETE"):
        faked.unregister("a")
    assert sorted(faked.snapshots) == ["a", "b"]


def test_names_are_quoted(faked, tmp_path):
    faked.register("x/y?z", tmp_path / "b")
    faked.unregister("x/y?z")
    assert faked.engine.asked[-1] == ("DELETE", "/admin/snapshots/x%2Fy%3Fz")


def test_an_engine_pool_swaps_models(expected, tmp_path):
    other = tiny("f32")

    async def use(pool):
        first = await pool.acquire("other")
        assert first.llm.generate(PROMPTS[0], GREEDY)[0].outputs[0].text
        assert (first.model_name, first.snapshot_path, first.id) == ("other", str(other), 0)
        waiting = asyncio.create_task(pool.acquire(base))
        await asyncio.sleep(0)
        assert not waiting.done() and pool.status()["slots"] == [{"id": 0, "model": "other", "busy": True}]
        with pytest.raises(RuntimeError, match="no idle slot"):
            pool.preload(base)
        pool.release(first)
        second = await asyncio.wait_for(waiting, 60)
        assert second.llm.generate(PROMPTS[0], GREEDY)[0].outputs[0].text == expected[0]
        pool.release(second)
        with pytest.raises(RuntimeError, match="not acquired"):
            pool.release(second)
        with pytest.raises(ValueError, match="'nobody' is not registered"):
            await pool.acquire("nobody")

    with EnginePool() as pool:
        pool.init_pool(str(tiny()), pool_size=1, **SETTINGS)
        (base,) = pool.snapshots
        with pytest.raises(FileNotFoundError):
            pool.register("other", tmp_path / "none.gguf")
        pool.register("other", other)
        assert sorted(pool.status()["registered_models"]) == sorted(["other", base])
        told = pool.preload("other")
        assert told["model"] == "other" and told["slot_id"] == 0
        asyncio.run(use(pool))
        with pytest.raises(ValueError, match="slot_id is 4"):
            pool.preload("other", 4)
        pool.register("some/other", other)  # a name that an address must quote
        pool.unregister("some/other")
        pool.unregister("other")
        pool.unregister("other")
        assert list(pool.engine.status()["registered_models"]) == [base]
        assert list(pool.snapshots) == [base]


def test_the_asgi_application_is_the_server(llm, tmp_path):
    async def calls(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://thaw") as client:
            health = (await client.get("/health")).json()
            assert health["status"] == "ok" and health["pool_size"] == 1
            body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0}
            whole = await client.post("/v1/chat/completions", json=body)
            assert whole.status_code == 200
            text = whole.json()["choices"][0]["message"]["content"]
            streamed = await client.post("/v1/chat/completions", json={**body, "stream": True})
            frames = [line[6:] for line in streamed.text.splitlines() if line.startswith("data: ")]
            assert frames[-1] == "[DONE]"
            parts = [json.loads(frame)["choices"][0]["delta"].get("content", "") for frame in frames[:-1]]
            assert "".join(parts) == text
            assert (await client.post("/v1/chat/completions", content=b"{")).status_code == 400
            assert (await client.get("/nowhere")).status_code == 404
            refused = await client.post("/v1/completions", content=b" " * (33 << 20))
            assert refused.status_code == 413

    async def admin(client, folder):
        listed = (await client.get("/admin/snapshots")).json()["snapshots"]
        assert len(listed) == 1
        for body, status in (
            ({"name": "x"}, 400),
            ({"name": "x", "path": "/etc/passwd"}, 403),
            ({"model": "x", "snapshot": str(folder / "none.gguf")}, 404),
            ({"name": "x", "path": str(folder / "text.gguf")}, 400),
            ({"name": "x", "path": str(folder / ".." / ".." / "etc" / "passwd")}, 403),
        ):
            reply = await client.post("/admin/snapshots", json=body)
            assert reply.status_code == status and reply.json()["error"]["message"], body
        assert (await client.post("/admin/snapshots", content=b"[")).status_code == 422
        registered = await client.post("/admin/snapshots", json={"name": "x", "path": str(tiny("f32"))})
        assert registered.status_code == 200 and registered.json()["status"] == "registered"
        preloaded = (await client.post("/admin/preload", json={"model": "x"})).json()
        assert preloaded["status"] == "preloaded"
        reply = await client.post("/v1/completions", json={"model": "x", "prompt": "a", "max_tokens": 2})
        assert reply.json()["model"] == "x"
        assert (await client.delete("/admin/snapshots/x")).json() == {"status": "unregistered", "model": "x"}
        assert (await client.delete("/admin/snapshots/x")).status_code == 200
        assert (await client.get("/admin/pool")).json()["pool_size"] == 1

    async def with_admin(app, folder):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://thaw", timeout=60) as client:
            await admin(client, folder)

    asyncio.run(calls(create_app(llm, "tiny")))
    (tmp_path / "text.gguf").write_text("no model")
    with EnginePool() as pool:
        pool.init_pool(str(tiny()), **SETTINGS)
        app = create_pool_app(pool, snapshot_dirs=[tmp_path, tiny().parent])
        asyncio.run(calls(app))
        asyncio.run(with_admin(app, tmp_path))


def test_a_client_of_the_asgi_application_that_hangs_up_ends_its_request(llm):
    async def run():
        sent = []
        gone = asyncio.Event()
        body = json.dumps({"prompt": "a", "max_tokens": 8000, "stream": True, "ignore_eos": True}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)
            if message["type"] == "http.response.body" and len(sent) > 3:
                gone.set()

        headers = [(b"content-type", b"application/json")]
        scope = {
            "type": "http", "method": "POST", "path": "/v1/completions", "headers": headers,
            "query_string": b"",
        }  # fmt: skip
        await asyncio.wait_for(create_app(llm)(scope, receive, send), 60)
        return sent

    sent = asyncio.run(run())
    assert sent[0]["status"] == 200 and len(sent) < 4000
    deadline = time.monotonic() + 30
    while llm.status()["workers"][0]["stats"]["running"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert llm.status()["workers"][0]["stats"]["running"] == 0


def test_a_script_for_vllm_runs_on_the_shim(tmp_path):
    from thaw_vllm.shims import DIRECTORY

    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from vllm import LLM, SamplingParams\n"
        "from thaw_vllm import fork, fork_completions\n"
        "llm = LLM(model=sys.argv[1], gpu_memory_utilization=0.3, enforce_eager=True, dtype='auto')\n"
        "trunk = 'Snow keeps the shape of the field beneath it. ' * 10\n"
        "llm.generate([trunk], SamplingParams(max_tokens=1, temperature=0.0))\n"
        "with fork(llm, label='demo') as handle:\n"
        "    for result in fork_completions(llm, [trunk + c for c in 'ab'], SamplingParams(max_tokens=4)):\n"
        "        print(result.worker_index, len(result.token_ids))\n"
        "    print(handle.prefix_tokens > 100, handle.label)\n"
    )
    path = os.pathsep.join([DIRECTORY, *(entry for entry in sys.path if entry)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tiny())],
        capture_output=True, text=True, timeout=120, cwd=ROOT, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == ["0 4", "0 4", "True demo"]
