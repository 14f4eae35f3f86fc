"""The engine in this process: what it holds, and what it leaves alone."""

import gc
import http.client
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from chats import SMALL, TINY, open_descriptors, tasks_come_down_to, tiny_chat
from processes import child_pids
from thaw_vllm._core import Engine
from thaw_vllm._engines import worker_binary


def new_engine(model=TINY, **settings):
    return Engine(str(model), settings={**SMALL, **settings}, worker_binary=worker_binary())


def ask(engine: Engine, path: str) -> bytes:
    connection = http.client.HTTPConnection("thaw")
    connection.sock = socket.socket(fileno=engine.connect())
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status == 200
    return body


def workers() -> set[int]:
    """Worker processes of this process."""
    found = set()
    for pid in child_pids():
        try:
            if b"worker" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
        except FileNotFoundError:
            continue
    return found


def run_python(program: str, timeout: float = 60) -> subprocess.CompletedProcess:
    """A program of its own, which imports from where we do."""
    places = os.pathsep.join(path for path in sys.path if path)
    head = f"import sys\nfrom processes import child_pids\nMODEL = {str(TINY)!r}\nSMALL = {SMALL!r}\n"
    return subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": places},
    )


def test_it_serves_whoever_connects():
    engine = new_engine()
    assert engine.model_name == TINY.stem
    assert b'"data"' in ask(engine, "/v1/models")
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.connect()
    engine.close()  # does nothing


def test_settings_that_are_wrong():
    with pytest.raises(ValueError, match="kv-bytes"):
        new_engine(kv_bytes="many")
    with pytest.raises(ValueError, match="no-such-flag"):
        new_engine(no_such_flag=1)
    with pytest.raises(ValueError, match="exclude each other"):
        new_engine(dtype="f16", quantize="q8_0")
    with pytest.raises(OSError, match="nowhere"):
        new_engine(model="/nowhere/at-all.gguf")
    with pytest.raises(OSError, match="worker binary"):
        Engine(str(TINY), settings=SMALL, worker_binary="/nowhere/thaw")


def test_lists_and_flags_become_arguments():
    engine = new_engine(served_model_name=["first", "second"], verify_weights=True)
    body = ask(engine, "/v1/models")
    assert b'"first"' in body and b'"second"' in body
    engine.close()


def test_nothing_is_left(tmp_path):
    new_engine().close()
    gc.collect()
    descriptors, threads = open_descriptors(), threading.active_count()
    tasks = len(os.listdir("/proc/self/task"))
    for _ in range(3):
        engine = new_engine()
        ask(engine, "/health")
        engine.close()
    gc.collect()
    assert open_descriptors() == descriptors
    assert threading.active_count() == threads
    assert tasks_come_down_to(tasks)


def test_it_says_nothing_to_the_terminal():
    told = run_python("""
        from thaw_vllm.langgraph import ChatThaw
        chat = ChatThaw(model=MODEL, max_tokens=1, extra_llm_kwargs=SMALL)
        chat.invoke("Hello")
        chat.close()
        chat.invoke("Hello")
    """)
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")


def test_the_process_has_none_of_its_descriptors():
    before = open_descriptors()
    engine = new_engine()
    gained = {name for name in open_descriptors() - before}
    assert len(gained) == 1 and "socket" in gained.pop()
    engine.close()


def test_a_descriptor_closed_here_is_closed():
    reading, writing = os.pipe()
    engine = new_engine()
    os.close(writing)  # a copy in the engine or in its workers would keep the pipe open
    os.set_blocking(reading, False)
    assert os.read(reading, 1) == b""
    os.close(reading)
    engine.close()


def test_signals_are_the_process_s():
    engine = new_engine()
    arrived = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: arrived.append(threading.get_ident()))
    os.kill(os.getpid(), signal.SIGUSR1)
    assert arrived == [threading.get_ident()]
    signal.signal(signal.SIGUSR1, before)
    ask(engine, "/health")
    engine.close()


def test_the_gil_is_free_while_it_starts():
    ticks = []
    done = threading.Event()

    def tick():
        while not done.wait(0.001):
            ticks.append(time.monotonic())

    ticker = threading.Thread(target=tick)
    ticker.start()
    started = time.monotonic()
    engine = new_engine()
    took = time.monotonic() - started
    done.set()
    ticker.join()
    during = [moment for moment in ticks if started <= moment <= started + took]
    assert len(during) >= 3, (len(during), took)
    engine.close()


def test_a_fork_has_no_part_in_it():
    result = run_python(
        """
        import os
        from thaw_vllm.langgraph import ChatThaw
        chat = ChatThaw(model=MODEL, max_tokens=4, temperature=0, extra_llm_kwargs=SMALL)
        mine = chat.invoke("hello").content
        child = os.fork()
        if child == 0:
            from thaw_vllm._engines import _shared
            # Its own engine, which ends with it; the parent's goes on.
            same = chat.invoke("hello").content == mine
            os._exit(0 if same and len(_shared) == 1 else 1)
        _, status = os.waitpid(child, 0)
        assert status == 0, status
        assert chat.invoke("hello").content == mine
        print("well")
        """
    )
    assert result.stdout == "well\n", result.stderr


def test_a_fork_that_does_not_use_it_ends_at_once():
    result = run_python(
        """
        import multiprocessing, os, time
        from thaw_vllm.langgraph import ChatThaw
        chat = ChatThaw(model=MODEL, max_tokens=4, temperature=0, extra_llm_kwargs=SMALL)
        chat.invoke("hello")
        context = multiprocessing.get_context("fork")
        process = context.Process(target=int)
        started = time.monotonic()
        process.start()
        process.join(20)
        assert process.exitcode == 0, process.exitcode
        chat.invoke("hello")
        print("well")
        """
    )
    assert result.stdout == "well\n", result.stderr


def assert_it_ended_well(result: subprocess.CompletedProcess) -> None:
    """Of a program that has printed its workers' pids: without complaint, and they are gone."""
    assert result.returncode == 0, result.stderr
    assert not [word for word in ("Traceback", "terminate", "FATAL") if word in result.stderr], result.stderr
    pids = [int(pid) for pid in result.stdout.split()]
    assert pids
    assert not [pid for pid in pids if pathlib.Path(f"/proc/{pid}").exists()]


def test_the_interpreter_ends_in_the_middle_of_a_stream():
    result = run_python(
        """
        import contextlib, os, threading
        from langchain_core.messages import AIMessageChunk
        from thaw_vllm import ThawError
        from thaw_vllm.langgraph import ChatThaw
        chat = ChatThaw(model=MODEL, temperature=0, extra_llm_kwargs=SMALL)
        begun = threading.Event()
        def endless():
            with contextlib.suppress(ThawError):
                for _ in chat.stream("hello", max_tokens=3000, ignore_eos=True):
                    begun.set()
                    [AIMessageChunk(content="x") for _ in range(100)]
        threading.Thread(target=endless, daemon=True).start()
        assert begun.wait(30)
        print(*child_pids())
        """
    )
    assert_it_ended_well(result)


def test_the_interpreter_ends_in_the_middle_of_a_call_of_an_llm():
    result = run_python(
        """
        import contextlib, threading, time
        from thaw_vllm import LLM, SamplingParams, _client
        llm = LLM(model=MODEL, **SMALL)
        llm.generate(["hello"], SamplingParams(max_tokens=1))
        def endless():
            with contextlib.suppress(Exception):
                while True:
                    llm.generate(["hello"] * 4, SamplingParams(max_tokens=3000, ignore_eos=True))
        threading.Thread(target=endless, daemon=True).start()
        deadline = time.monotonic() + 30
        while not _client._in_use:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        print(*child_pids())
        """
    )
    assert_it_ended_well(result)


def test_a_killed_process_takes_its_workers_along():
    result = run_python(
        """
        import os, signal
        from thaw_vllm.langgraph import ChatThaw
        chat = ChatThaw(model=MODEL, max_tokens=4, extra_llm_kwargs=SMALL)
        chat.invoke("hello")
        print(*child_pids(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    pids = [int(pid) for pid in result.stdout.split()]
    assert pids and result.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "workers outlive the process"
        time.sleep(0.02)


def test_equal_settings_share_an_engine():
    one, other = tiny_chat(temperature=0.5), tiny_chat(max_tokens=3)
    one.invoke("hello")
    before = workers()
    other.invoke("hello")
    assert workers() == before
    assert one._engine.engine is other._engine.engine
    different = tiny_chat(fork_window_ms=1.0)
    different.invoke("hello")
    assert len(workers()) == len(before) + 1
    different.close()
    assert workers() == before


def test_close_ends_it_with_the_last_user_and_it_starts_again():
    chats = [tiny_chat(fork_min_prefix_tokens=77) for _ in range(2)]
    chats[0].invoke("hello")
    engine = chats[0]._engine.engine
    chats[0].close()
    assert engine.has_started
    chats[1].close()
    assert not engine.has_started
    assert chats[0].invoke("hello").content
    chats[0].close()
    assert not engine.has_started
