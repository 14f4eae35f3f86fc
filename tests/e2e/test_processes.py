"""Workers die, the server does not: streams go on from the last token sent."""

import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest
from conftest import BUILD, tiny_model
from thaw_server import ThawServer, children, in_parallel, process_state

LONG = {"prompt": list(range(30, 200)), "max_tokens": 400, "temperature": 0, "ignore_eos": True}


def read_some(stream, count: int) -> tuple[list[str], object]:
    frames = iter(stream)
    texts = []
    while len(texts) < count:
        frame = next(frames)
        texts += [choice["text"] for choice in frame.get("choices", [])]
    return texts, frames


def test_a_killed_worker_loses_and_doubles_nothing(server):
    expected = server.stream("/v1/completions", {**LONG, "cache_salt": "reference"}).text()
    sampled = {**LONG, "temperature": 1.0, "seed": 7}
    expected_sampled = server.stream("/v1/completions", {**sampled, "cache_salt": "reference"}).text()
    greedy_stream = server.stream("/v1/completions", LONG)
    sampled_stream = server.stream("/v1/completions", sampled)
    texts, frames = read_some(greedy_stream, 20)
    os.kill(server.worker_pids()[0], signal.SIGKILL)
    for frame in frames:
        texts += [choice["text"] for choice in frame.get("choices", [])]
    assert "".join(texts) == expected
    assert sampled_stream.text() == expected_sampled
    assert not greedy_stream.errors and not sampled_stream.errors
    assert greedy_stream.usage["completion_tokens"] == LONG["max_tokens"]
    assert server.wait_idle()["thaw_worker_deaths_total"] == 1


def test_other_workers_streams_are_untouched(serve):
    server = serve("--workers", "2", "--threads", "1")
    bodies = [{**LONG, "thaw": {"worker": worker}, "cache_salt": str(worker)} for worker in (0, 1)]
    streams = [server.stream("/v1/completions", body) for body in bodies]
    texts, frames = read_some(streams[1], 5)
    read_some(streams[0], 5)
    pool = server.pool()["workers"]
    os.kill(next(w["pid"] for w in pool if w["worker"] == 0), signal.SIGKILL)
    for frame in frames:
        texts += [choice["text"] for choice in frame.get("choices", [])]
    streams[0].text()
    after = {worker["worker"]: worker for worker in server.pool()["workers"]}
    assert after[1]["generation"] == 0
    assert not streams[0].errors and not streams[1].errors
    assert "".join(texts) == server.stream("/v1/completions", bodies[1]).text()


def test_kills_leave_nothing_behind(server):
    def descriptors() -> int:
        return len(list(pathlib.Path(f"/proc/{server.process.pid}/fd").iterdir()))

    server.post("/v1/completions", {**LONG, "max_tokens": 1})
    before = descriptors()
    for kill in range(5):
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        status, reply = server.post("/v1/completions", {**LONG, "max_tokens": 3})
        assert status == 200, reply
        assert server.pool()["workers"][0]["generation"] == kill + 1
    left = children(server.process.pid)
    assert sorted(left) == sorted(server.worker_pids())
    assert "Z" not in [process_state(pid) for pid in left]
    assert descriptors() <= before + 2  # a client's connection may be on its way out


def test_an_upgrade_may_replace_the_binary_of_a_running_server(tmp_path):
    binary = tmp_path / "thaw"
    shutil.copy2(BUILD / "bin/thaw", binary)
    server = ThawServer(binary, tiny_model("f32"))
    try:
        server.wait_healthy()
        expected = server.stream("/v1/completions", {**LONG, "cache_salt": "reference"}).text()
        stream = server.stream("/v1/completions", LONG)
        texts, frames = read_some(stream, 20)
        new = tmp_path / "new"
        new.write_text("#!/bin/sh\nexit 1\n")
        new.chmod(0o755)
        new.replace(binary)
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        for frame in frames:
            texts += [choice["text"] for choice in frame.get("choices", [])]
        assert "".join(texts) == expected and not stream.errors
    finally:
        server.stop()


def test_a_stop_string_ends_one_of_several_choices(server):
    body = {**LONG, "n": 4, "temperature": 1.0, "seed": 3, "max_tokens": 1500}
    texts = [choice["text"] for choice in server.post("/v1/completions", body)[1]["choices"]]
    stop = texts[2][8:18]
    assert sum(stop in text for text in texts) < len(texts)
    before = server.wait_idle()["thaw_tokens_decoded_total"]
    _, reply = server.post("/v1/completions", {**body, "stop": stop})
    decoded = server.wait_idle()["thaw_tokens_decoded_total"] - before
    assert reply["choices"][2]["text"] == texts[2][: texts[2].index(stop)]
    assert reply["choices"][2]["finish_reason"] == "stop"
    # The stopped ones go on for the steps that are under way, not to the end of the others.
    assert decoded < reply["usage"]["completion_tokens"] + 1000


def test_hanging_up_frees_the_blocks(server):
    free = server.wait_idle()["thaw_kv_blocks_free"]
    stream = server.stream("/v1/completions", {**LONG, "max_tokens": 4000})
    read_some(stream, 3)
    stream.hang_up()
    metrics = server.wait_idle()
    assert metrics["thaw_kv_blocks_free"] == free
    assert metrics["thaw_tokens_decoded_total"] < 3900, "the request ran on after its client had gone"


def test_sigterm_lets_running_streams_finish(serve):
    server = serve()
    stream = server.stream("/v1/completions", {**LONG, "max_tokens": 600})
    texts, frames = read_some(stream, 3)
    pids = server.worker_pids()
    server.process.send_signal(signal.SIGTERM)
    rest = [choice for frame in frames for choice in frame.get("choices", [])]
    assert rest[-1]["finish_reason"] == "length" and not stream.errors and stream.done
    assert stream.usage["completion_tokens"] == 600
    assert server.process.wait(timeout=20) == 0
    assert not [pid for pid in pids if pathlib.Path(f"/proc/{pid}").exists()]


def test_the_drain_deadline_holds(serve):
    server = serve("--drain-timeout", "0.2", "--threads", "1")
    stream = server.stream("/v1/completions", {**LONG, "max_tokens": 7000})
    read_some(stream, 1)
    started = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=20) == 0
    assert time.monotonic() - started < 10
    stream.close()


def test_no_worker_outlives_a_killed_server(serve):
    server = serve()
    pids = server.worker_pids()
    server.process.kill()
    server.process.wait()
    deadline = time.monotonic() + 10
    while any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "an orphan is left"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        (b"", "GGUF"),
        (b"PK\x03\x04" + bytes(100), "not a GGUF file"),
        (b"cut", "truncated"),
    ],
    ids=["missing", "empty", "zip", "cut"],
)
def test_a_bad_model_file_is_one_clear_line(tmp_path, content, says):
    path = tmp_path / "model.gguf"
    if content == b"cut":
        whole = tiny_model().read_bytes()
        content = whole[: len(whole) // 2]
    if content is not None:
        path.write_bytes(content)
    command = [str(BUILD / "bin" / "thaw"), "serve", str(path), "--port", "0"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert str(path) in lines[0] and says.lower() in lines[0].lower(), lines[0]


@pytest.mark.parametrize(
    ("flags", "environment", "says"),
    [
        (["--workers", "0"], {}, "workers"),
        (["--port", "99999"], {}, "port"),
        (["--kv-dtype", "fp8"], {}, "kv-dtype"),
        (["--device", "gpu"], {}, "use cpu, cuda or cuda:N"),
        (["--kv-dtype", "f32"], {"THAW_DEVICE": "cuda"}, "bf16"),
        (["--kv-bytes", "4096GiB"], {}, "KV"),
        ([], {"THAW_WINDOW_MS": "soon"}, "window-ms"),
        (["--no-such-flag"], {}, "no-such-flag"),
    ],
)
def test_a_bad_setting_is_named(flags, environment, says):
    command = [str(BUILD / "bin" / "thaw"), "serve", str(tiny_model()), *flags]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=30, env={**os.environ, **environment}
    )
    assert result.returncode == 1, result.stderr
    assert says in result.stderr, result.stderr


def test_many_at_once_on_two_workers(serve):
    server = serve("--workers", "2", "--threads", "1")
    bodies = [
        {**LONG, "max_tokens": 20, "prompt": LONG["prompt"][: 50 + i], "seed": i, "temperature": 1.0}
        for i in range(24)
    ]
    together = in_parallel([lambda b=b: server.stream("/v1/completions", b).text() for b in bodies])
    alone = [server.post("/v1/completions", {**b, "cache_salt": "alone"})[1] for b in bodies]
    assert together == [reply["choices"][0]["text"] for reply in alone]
