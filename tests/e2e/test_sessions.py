"""Sessions on the real binary: the same bits as without one, forks, going back, restarts, moves."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import BUILD, ROOT, tiny_model
from thaw_server import in_parallel

CHAT = "/v1/chat/completions"
LONG = "The water that the trunk has carried goes on from there. " * 60
GREEDY = {"temperature": 0, "max_tokens": 24, "ignore_eos": True, "logprobs": True, "top_logprobs": 3}
SAMPLED = {"temperature": 1, "seed": 11, "max_tokens": 24, "ignore_eos": True, "logprobs": True}


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def post(server, path: str, body=None, headers=None):
    status, reply = server.post(path, body or {}, headers)
    assert status == 200, reply
    return reply


def create(server, *messages: dict, **extra) -> str:
    return post(server, "/v1/sessions", {"messages": list(messages), **extra})["id"]


def shown(server, session: str) -> dict:
    status, text = server.get(f"/v1/sessions/{session}?include=messages,token_ids")
    assert status == 200, text
    return json.loads(text)


def turn(server, session: str, *messages: dict, **extra) -> dict:
    return post(server, CHAT, {"session_id": session, "messages": list(messages), **extra})


def fork(server, session: str, **body) -> list[str]:
    return [child["id"] for child in post(server, f"/v1/sessions/{session}/fork", body)["data"]]


def answer(reply: dict) -> tuple:
    """Everything of a reply that the model decided, bit for bit."""
    choice = reply["choices"][0]
    return choice["message"]["content"], choice["finish_reason"], str(choice["logprobs"])


def alone(server, messages: list[dict], salt: str, **extra) -> dict:
    """The same messages without a session, from nothing: another salt shares no KV."""
    reply = post(server, CHAT, {"messages": messages, "cache_salt": salt, **extra})
    assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    return reply


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_turns_are_the_bits_of_the_same_messages(server, sampling):
    messages = [{"role": "system", "content": LONG}, user("Where does it go?")]
    session = create(server, *messages)
    new: list[dict] = []
    for number in range(3):
        ours = turn(server, session, *new, **sampling)
        theirs = alone(server, messages, f"turn-{number}", **sampling)
        assert answer(ours) == answer(theirs)
        details = ours["usage"]["prompt_tokens_details"]
        assert ours["usage"]["prompt_tokens"] == theirs["usage"]["prompt_tokens"]
        # What the session had is not computed again, but for the reply's last token.
        common = ours["usage"]["session"]["common_tokens"]
        assert details["cached_tokens"] >= common - 2 > 200
        new = [user(f"And then, {number}?")]
        messages += [{"role": "assistant", "content": answer(ours)[0]}, *new]


def test_streams_and_whole_answers_continue_alike(server):
    first, second = fork(server, create(server, user(LONG)), n=2)
    whole = turn(server, first, **GREEDY)
    stream = server.stream(CHAT, {"session_id": second, **GREEDY})
    assert stream.text() == answer(whole)[0]
    assert stream.usage["session"]["id"] == second
    assert shown(server, first)["token_ids"] == shown(server, second)["token_ids"]


def test_a_reply_in_two_turns_is_the_reply(server):
    session = create(server, user(LONG))
    (other,) = fork(server, session)
    whole = turn(server, session, temperature=0, max_tokens=40, ignore_eos=True)
    turn(server, other, temperature=0, max_tokens=17, ignore_eos=True)
    rest = turn(server, other, append=True, temperature=0, max_tokens=23, ignore_eos=True)
    assert rest["usage"]["session"]["mode"] == "append"
    ours, theirs = shown(server, other), shown(server, session)
    assert ours["token_ids"] == theirs["token_ids"]
    assert ours["messages"] == theirs["messages"]
    assert theirs["messages"][1]["content"] == answer(whole)[0]


def test_children_are_fresh_requests(server):
    """Cut at a message, at a token inside a reply and nowhere; all at once, each as if alone."""
    session = create(server, {"role": "system", "content": LONG}, user("One?"))
    first = answer(turn(server, session, **GREEDY))[0]
    turn(server, session, user("Two?"), **GREEDY)
    history = shown(server, session)
    early = fork(server, session, n=4, cut={"messages": 3})
    before = server.wait_idle()
    replies = in_parallel(
        [lambda i=i, c=c: turn(server, c, user(f"{i}: why?"), **GREEDY) for i, c in enumerate(early)]
    )
    cost = server.wait_idle()["thaw_tokens_prefilled_total"] - before["thaw_tokens_prefilled_total"]
    assert cost < 4 * 60, "the children computed their trunk again"
    for number, reply in enumerate(replies):
        messages = [*history["messages"][:3], user(f"{number}: why?")]
        assert messages[2]["content"] == first
        assert answer(reply) == answer(alone(server, messages, f"child-{number}", **GREEDY))
    # Inside the second reply the raw ids go on; /v1/completions takes ids as they are.
    cut = len(history["token_ids"]) - 9
    (inside,) = fork(server, session, cut={"tokens": cut})
    turn(server, inside, append=True, temperature=0, max_tokens=9, ignore_eos=True)
    assert shown(server, inside)["token_ids"] == history["token_ids"]
    raw = {"prompt": history["token_ids"][:cut], "cache_salt": "raw", "max_tokens": 9, "temperature": 0}
    text = post(server, "/v1/completions", {**raw, "ignore_eos": True})["choices"][0]["text"]
    assert shown(server, inside)["messages"][-1]["content"].endswith(text)


def test_going_back_is_never_having_gone_further(server):
    session = create(server, user(LONG))
    turn(server, session, **GREEDY)
    (straight,) = fork(server, session)
    post(server, f"/v1/sessions/{session}/checkpoint", {"name": "here"})
    tokens = shown(server, session)["tokens"]
    right = answer(turn(server, straight, user("Right."), **SAMPLED))
    for to in ({"checkpoint": "here"}, {"tokens": tokens}, {"messages": 2}):
        turn(server, session, user("Wrong."), **SAMPLED)
        post(server, f"/v1/sessions/{session}/rewind", to)
        assert answer(turn(server, session, user("Right."), **SAMPLED)) == right
    assert shown(server, session)["token_ids"] == shown(server, straight)["token_ids"]


def test_a_session_of_a_running_stream(server):
    body = {"messages": [user(LONG)], "temperature": 1, "seed": 5, "max_tokens": 400, "ignore_eos": True}
    stream = server.stream(CHAT, body)
    frames = iter(stream)
    response = next(frames)["id"]
    while not any(choice["delta"].get("content") for choice in next(frames)["choices"]):
        pass
    session = post(server, "/v1/sessions", {"response_id": response})["id"]
    so_far = shown(server, session)
    for _ in frames:
        pass
    stream.close()
    whole = post(server, "/v1/sessions", {"response_id": response})["id"]
    line = shown(server, whole)["token_ids"]
    assert line[: so_far["tokens"]] == so_far["token_ids"]
    # The draws are keyed by the seed and the position: the copy goes on as the stream did.
    count = min(20, len(line) - so_far["tokens"])
    if count > 0:
        turn(server, session, append=True, temperature=1, seed=5, max_tokens=count, ignore_eos=True)
        assert shown(server, session)["token_ids"] == line[: so_far["tokens"] + count]


def test_a_session_survives_its_worker(server):
    session = create(server, user(LONG))
    turn(server, session, **GREEDY)
    (twin,) = fork(server, session)
    expected = answer(turn(server, twin, user("On."), **GREEDY))
    os.kill(server.worker_pids()[0], signal.SIGKILL)
    assert answer(turn(server, session, user("On."), **GREEDY)) == expected


def test_tenants_share_nothing(serve):
    server = serve("--api-key", "anna:a-key,berta:b-key")
    anna, berta = ({"Authorization": f"Bearer {key}"} for key in ("a-key", "b-key"))
    session = post(server, "/v1/sessions", {"messages": [user(LONG)]}, anna)["id"]
    for path in (f"/v1/sessions/{session}", f"/v1/sessions/{session}/tree"):
        assert server.get(path, berta)[0] == 404
        assert server.get(path, anna)[0] == 200
    assert server.post(CHAT, {"session_id": session}, berta)[0] == 404
    status, reply = server.post("/v1/sessions", {"messages": [user(LONG)]}, berta)
    assert status == 200 and reply["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def kill_and_serve_again(server, serve, directory: str):
    """The next server on the same directory, after the first died without a goodbye."""
    pids = server.worker_pids()
    server.process.kill()
    server.process.wait(timeout=30)
    for pid in pids:
        wait_gone(pid)
    return serve("--session-dir", directory)


def test_a_killed_server_goes_on_from_its_checkpoint(serve, tmp_path):
    """The answer is that of the run which nobody disturbed."""
    directory = str(tmp_path / "sessions")
    server = serve("--session-dir", directory)
    session = create(server, {"role": "system", "content": LONG * 5}, user("Go."))
    turn(server, session, **GREEDY)
    assert shown(server, session)["tokens"] >= 4000
    (undisturbed,) = fork(server, session)
    expected = answer(turn(server, undisturbed, user("On."), **GREEDY))
    post(server, f"/v1/sessions/{session}/checkpoint", {"name": "saved"})
    turn(server, session, user("Lost."), **GREEDY)
    server = kill_and_serve_again(server, serve, directory)
    assert [entry["name"] for entry in shown(server, session)["checkpoints"]] == ["saved"]
    assert answer(turn(server, session, user("On."), **GREEDY)) == expected


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 30
    while pathlib.Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, f"worker {pid} outlives its server"
        time.sleep(0.01)


def test_a_stopped_server_has_written_all(serve, tmp_path):
    directory = str(tmp_path / "sessions")
    server = serve("--session-dir", directory)
    session = create(server, user(LONG))
    children = fork(server, session, n=2, labels=["a", "b"])
    replies = [answer(turn(server, child, user(f"{i}?"), **GREEDY)) for i, child in enumerate(children)]
    assert server.stop() == 0
    server = serve("--session-dir", directory)
    tree = json.loads(server.get(f"/v1/sessions/{children[1]}/tree")[1])
    assert [node["label"] for node in tree["nodes"]] == [None, "a", "b"]
    for child, reply in zip(children, replies):
        assert shown(server, child)["messages"][-1]["content"] == reply[0]
        assert turn(server, child, user("More."), **GREEDY)["usage"]["session"]["common_tokens"] > 200


def test_children_that_did_not_go_on_share_their_file(serve, tmp_path):
    server = serve("--session-dir", str(tmp_path))
    session = create(server, user(LONG))
    still = fork(server, session, n=3)
    (gone_on,) = fork(server, session)
    turn(server, gone_on, user("On."), **GREEDY)
    assert server.stop() == 0
    assert len({os.stat(tmp_path / f"{each}.thawkv").st_ino for each in [session, *still]}) == 1
    assert os.stat(tmp_path / f"{session}.thawkv").st_nlink == 4
    assert os.stat(tmp_path / f"{gone_on}.thawkv").st_nlink == 1
    server = serve("--session-dir", str(tmp_path))
    assert cached(turn(server, still[1], user("On."), **GREEDY)) > 500
    # What one writes is its own; the others keep what they had.
    post(server, f"/v1/sessions/{still[1]}/checkpoint", {})
    assert os.stat(tmp_path / f"{session}.thawkv").st_nlink == 3
    assert not list(tmp_path.glob("*.linked*"))


@pytest.mark.parametrize("by_file", [False, True])
def test_a_session_moves_to_another_server(serve, tmp_path, by_file):
    here = serve("--session-dir", str(tmp_path / "here"))
    there = serve("--session-dir", str(tmp_path / "there"))
    session = create(here, user(LONG))
    turn(here, session, **GREEDY)
    path = f"/v1/sessions/{session}/export"
    if by_file:
        post(here, path, {"file": "moving"})
        for file in (tmp_path / "here" / "exports").iterdir():
            shutil.copy(file, tmp_path / "there" / "exports")
        moved = post(there, "/v1/sessions/import", {"file": "moving"})
    else:
        moved = post(there, "/v1/sessions/import", {"document": post(here, path)["document"]})
    assert moved["id"] == session
    ours = answer(turn(there, session, user("On."), **GREEDY))
    assert ours == answer(turn(here, session, user("On."), **GREEDY))
    assert shown(there, session)["token_ids"] == shown(here, session)["token_ids"]


def test_another_models_session_is_refused(serve, tmp_path):
    server = serve("--session-dir", str(tmp_path))
    session = create(server, user("Hi"))
    document = post(server, f"/v1/sessions/{session}/export")["document"]
    document.update(vocab_size=document["vocab_size"] + 1, id="0" * 32)
    status, reply = server.post("/v1/sessions/import", {"document": document})
    assert status == 400 and reply["error"]["param"] == "document.vocab_size"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--session-ttl", "0"], "--session-ttl"),
        (["--session-ttl", "100", "--session-max-ttl", "99"], "--session-max-ttl, here 99"),
        (["--session-max-ttl", "99999999999"], "--session-max-ttl"),
        (["--session-bytes", "1TiB"], "--arena-bytes"),
        (["--session-bytes", "-5"], "--session-bytes"),
        (["--session-bytes", "some"], "--session-bytes"),
        (["--max-sessions", "0"], "--max-sessions"),
        (["--session-history-bytes", "12"], "--session-history-bytes"),
        (["--session-dir", "/proc/nowhere/x"], "/proc/nowhere"),
    ],
)
def test_absurd_settings_are_refused(image_cache, flags, words):
    command = [str(BUILD / "bin" / "thaw"), "serve", str(tiny_model()), "--port", "0", *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=image_cache, timeout=60)
    assert done.returncode != 0
    assert words in done.stderr + done.stdout, done.stderr


def test_the_documentation_works_as_written(server):
    text = (ROOT / "docs" / "sessions.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    code = code.replace("http://127.0.0.1:8000/v1", f"http://127.0.0.1:{server.port}/v1")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["security", "speed", "names", "tests"]
    assert all(int(line.split()[1]) > 100 for line in lines[:4]), "the context was computed again"
    assert lines[-1].startswith("tests ")


def cached(reply: dict) -> int:
    return reply["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_after_a_restart_nothing_of_the_history_is_prefilled(serve, tmp_path):
    directory = str(tmp_path / "sessions")
    server = serve("--session-dir", directory)
    session = create(server, {"role": "system", "content": LONG * 5}, user("Go."))
    turn(server, session, **GREEDY)
    saved = post(server, f"/v1/sessions/{session}/checkpoint", {})["saved"]
    tokens = shown(server, session)["tokens"]
    assert saved["kv_error"] is None and saved["kv_tokens"] >= tokens - 17, saved
    server = kill_and_serve_again(server, serve, directory)
    before = server.wait_idle()
    reply = turn(server, session, user("On."), **GREEDY)
    prefilled = server.wait_idle()["thaw_tokens_prefilled_total"] - before["thaw_tokens_prefilled_total"]
    assert cached(reply) >= saved["kv_tokens"]
    assert prefilled == reply["usage"]["prompt_tokens"] - cached(reply) < 60
    # The file serves the children too, and goes with the session.
    (child,) = fork(server, session, cut={"tokens": tokens - 10})
    assert cached(turn(server, child, append=True, max_tokens=2)) >= tokens - 10 - 17
    files = pathlib.Path(directory)
    assert list(files.glob(f"{session}.*"))
    connection = server.connect()
    connection.request("DELETE", f"/v1/sessions/{session}")
    assert connection.getresponse().status == 200
    deadline = time.monotonic() + 30
    while list(files.glob(f"{session}.*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_files_bring_the_kv_to_another_server(serve, tmp_path):
    here = serve("--session-dir", str(tmp_path / "here"))
    there = serve("--session-dir", str(tmp_path / "there"))
    session = create(here, user(LONG))
    exported = post(here, f"/v1/sessions/{session}/export", {"file": "moving"})
    assert exported["kv_error"] is None and exported["kv_tokens"] > 500
    for file in (tmp_path / "here" / "exports").iterdir():
        shutil.copy(file, tmp_path / "there" / "exports")
    moved = post(there, "/v1/sessions/import", {"file": "moving"})
    assert moved["kv"]["kept"] and "error" not in moved["kv"]
    assert cached(turn(there, session, **GREEDY)) >= exported["kv_tokens"]


def test_damaged_kv_is_computed_again(serve, tmp_path):
    server = serve("--session-dir", str(tmp_path))
    session = create(server, user(LONG))
    (other,) = fork(server, session)
    expected = answer(turn(server, other, **GREEDY))
    post(server, f"/v1/sessions/{session}/checkpoint", {})
    damage(tmp_path / f"{session}.thawkv")
    server = kill_and_serve_again(server, serve, str(tmp_path))
    reply = turn(server, session, **GREEDY)
    assert answer(reply) == expected
    assert cached(reply) == 0


def damage(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
