"""ForkHandle, agentfs and rewind: the facts and numbers of the `thaw` binary, on the same files."""

import json
import math
import shutil
import subprocess
import sys
import types

import pytest
import s3_server
import thaw_handle
from conftest import BUILD, ROOT
from thaw_handle import rollout, token, write_rollout
from thaw_vllm import agentfs, rewind
from thaw_vllm.errors import BlockShapeMismatchError, ForkError, HandleClosedError, ModelMismatchError
from thaw_vllm.fork import ForkHandle

sys.path.insert(0, str(ROOT / "scripts" / "fixtures"))
from handle_golden import golden_handles

THAW = BUILD / "bin" / "thaw"
GOLDEN = ROOT / "tests" / "data" / "handle"
FORMS = sorted(golden_handles())


def told(*arguments):
    command = [str(THAW), *map(str, arguments), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("form", FORMS)
def test_inspect_has_the_facts_of_the_binary(form):
    found = agentfs.summarize_handle(GOLDEN / form)
    binary = told("inspect", GOLDEN / form)
    binary.pop("checksums")
    assert sorted(found.pop("files")) == sorted(binary.pop("files"))
    assert found == binary
    text = agentfs.inspect_handle(GOLDEN / form / "handle.json")
    assert text.startswith("session ") and found["model_id"] in text


@pytest.mark.parametrize("a", FORMS)
def test_diff_has_the_numbers_of_the_binary(a):
    for b in FORMS:
        found = agentfs.compare_handles(GOLDEN / a, GOLDEN / b)
        assert found == told("diff", GOLDEN / a, GOLDEN / b), (a, b)
        assert agentfs.diff_handles(GOLDEN / a, GOLDEN / b).startswith("A  ")


def test_diff_says_where_two_part():
    text = agentfs.diff_handles(GOLDEN / "planner", GOLDEN / "critic")
    assert "2 blocks, 8 tokens (50 % of A, 66 % of B), 128 B in both" in text
    assert "at token 10: A 31, B 41" in text and 'A    "plan"' in text


def test_log_has_the_tree_of_the_binary(tmp_path):
    for form in FORMS:
        shutil.copytree(GOLDEN / form, tmp_path / form)
    ForkHandle.load(tmp_path / "planner").branch(tmp_path / "leaf", label="leaf")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "handle.json").write_text("{")
    (tmp_path / "link").symlink_to(tmp_path / "trunk")
    found, binary = agentfs.trace_handles(tmp_path), told("log", tmp_path)
    assert [e["path"] for e in found.pop("unread")] == [e["path"] for e in binary.pop("unread")]
    assert found == binary
    text = agentfs.log_handles(tmp_path)
    assert "shares 4, +0" in text and "`- leaf" in text and "not read: " in text
    (tmp_path / "none").mkdir()
    assert agentfs.log_handles(tmp_path / "none") == f"no handles in {tmp_path / 'none'}\n"
    with pytest.raises(FileNotFoundError):
        agentfs.log_handles(tmp_path / "nowhere")


@pytest.mark.parametrize("form", FORMS)
def test_handles_load_save_and_branch(tmp_path, form):
    source = json.loads((GOLDEN / form / "handle.json").read_text())
    handle = ForkHandle.load(GOLDEN / form)
    for key in ("model_id", "handle_id", "prefix_tokens", "label", "created_at", "num_kv_blocks"):
        assert getattr(handle, key) == source[key]
    assert handle.kv_path == str(GOLDEN / form / "kv.thawkv")
    copy = handle.save(tmp_path / "copy")
    assert told("inspect", tmp_path / "copy", "--verify")["handle_id"] == handle.handle_id
    assert copy.handle_id == handle.handle_id and copy.state_dir == str(tmp_path / "copy")
    for path in (GOLDEN / form).iterdir():
        if path.name != "handle.json":
            assert (tmp_path / "copy" / path.name).read_bytes() == path.read_bytes()
    child = copy.branch(tmp_path / "child", label="a b/ü")
    assert (child.parent_id, child.label) == (handle.handle_id, "a b/ü")
    assert child.handle_id != handle.handle_id and child.created_at > handle.created_at
    found = told("inspect", tmp_path / "child")
    assert (found["handle_id"], found["parent_id"]) == (child.handle_id, child.parent_id)
    thaw_handle.Handle(tmp_path / "child")
    # Saved over a handle, and over itself.
    copy.save(tmp_path / "child")
    assert ForkHandle.load(tmp_path / "child").handle_id == handle.handle_id
    with pytest.raises(ForkError, match="own directory"):
        copy.save(tmp_path / "copy")


def test_a_handle_knows_its_end_and_its_damage(tmp_path):
    handle = ForkHandle.load(GOLDEN / "trunk")
    with handle as same:
        assert same is handle
    handle.close()
    for use in (lambda: handle.save(tmp_path / "x"), lambda: handle.hydrate(None), handle.__enter__):
        with pytest.raises(HandleClosedError):
            use()
    assert (GOLDEN / "trunk" / "handle.json").exists()
    with pytest.raises(FileNotFoundError, match="is no handle"):
        ForkHandle.load(tmp_path)
    files = thaw_handle.handle_files("h", [1, 2, 3, 4])
    fields = json.loads(files["handle.json"])
    for change, message in (
        ({"version": 2}, "version 2"),
        ({"num_kv_blocks": 9}, "num_kv_blocks 9"),
        ({"tensor_parallel_size": 10**9}, "which cannot be"),
    ):
        files["handle.json"] = json.dumps({**fields, **change, "unknown": 1}).encode()
        thaw_handle.write(tmp_path / "bad", files)
        with pytest.raises(ForkError, match=message):
            ForkHandle.load(tmp_path / "bad")
    files["handle.json"] = json.dumps({**fields, "unknown": 1}).encode()
    data = bytearray(files["kv.thawkv"])
    data[-1] ^= 1
    good = ForkHandle.load(thaw_handle.write(tmp_path / "bad", files))
    (tmp_path / "bad" / "kv.thawkv").write_bytes(data)
    with pytest.raises(ForkError, match="is damaged"):
        good.save(tmp_path / "y")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("all of it")
    with pytest.raises(ForkError, match="holds thesis.txt"):
        good.save(tmp_path / "full")
    (tmp_path / "bad" / "kv.thawkv").unlink()
    (tmp_path / "bad" / "kv.thawkv").symlink_to(GOLDEN / "trunk" / "kv.thawkv")
    with pytest.raises(OSError, match="symbolic link"):
        ForkHandle.load(tmp_path / "bad")


def test_hydrate_refuses_before_it_touches_anything():
    def engine(model):
        config = types.SimpleNamespace(model_config=types.SimpleNamespace(model=model))
        inner = types.SimpleNamespace(vllm_config=config, has_unfinished_requests=lambda: False)
        return types.SimpleNamespace(llm_engine=inner, save_kv=print, load_kv=pytest.fail)

    handle = ForkHandle.load(GOLDEN / "trunk")
    with pytest.raises(ModelMismatchError, match="of org/tiny, the engine runs org/other"):
        handle.hydrate(engine("org/other"))
    with pytest.raises(BlockShapeMismatchError, match="of another engine"):
        handle.hydrate(engine("org/tiny"))
    with pytest.raises(ForkError, match="does not say its model"):
        handle.hydrate(object())


def test_handles_in_s3(tmp_path, monkeypatch):
    server = s3_server.S3Server()
    try:
        server.request("PUT", "/bucket")
        for key, value in {**s3_server.CREDENTIALS, "AWS_ENDPOINT_URL": server.url}.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setenv("THAW_CACHE_DIR", str(tmp_path / "cache"))
        handle = ForkHandle.load(GOLDEN / "ranks")
        uri = "s3://bucket/sessions/one"
        sent = handle.save(uri)
        assert sent.state_dir == uri and sent.kv_path == f"{uri}/kv.thawkv"
        brought = ForkHandle.load(uri)
        assert brought.handle_id == handle.handle_id and brought.tensor_parallel_size == 2
        names = {path.name for path in (GOLDEN / "ranks").iterdir()}
        local = brought.save(tmp_path / "local")
        assert {path.name for path in (tmp_path / "local").iterdir()} == names
        child = local.branch(uri, label="second")
        again = ForkHandle.load(uri)
        assert (again.label, again.handle_id) == ("second", child.handle_id)
        with pytest.raises(ForkError, match="holds another handle now"):
            sent.save(tmp_path / "more")
        with pytest.raises(FileNotFoundError):
            ForkHandle.load("s3://bucket/nothing")
    finally:
        server.stop()


@pytest.fixture
def runs(tmp_path):
    start = [token(10, "The", -0.1), token(11, " plan", -0.2)]
    plain = token(12, " is", -0.4, (13, " may", -1.2))
    doubt = token(13, " may", -1.2, (12, " is", -0.4))
    for name, tail in {
        "calm": [plain, token(20, " good", -0.3, (21, " bad", -1.5))],
        "bold": [plain, token(21, " bad", -1.5, (20, " good", -0.3)), token(22, ".", -0.1)],
        "wary": [doubt, token(23, " fail", -0.9)],
    }.items():
        write_rollout(tmp_path / "runs" / name, rollout(name, start + tail))
    mute = [{**entry, "logprob": None} for entry in start]
    write_rollout(tmp_path / "runs" / "mute", rollout("mute", mute))
    write_rollout(tmp_path / "runs" / "other", rollout(None, start, prompt=(9,), model_id="org/b"))
    (tmp_path / "runs" / "bad").mkdir()
    (tmp_path / "runs" / "bad" / "rollout.json").write_text("{}")
    return tmp_path / "runs"


def test_rewind_has_the_numbers_of_the_binary(runs):
    for name in ("calm", "bold", "wary", "mute", "other"):
        found, binary = rewind.summarize_rollout(runs / name), told("rewind", "inspect", runs / name)
        assert {key: found[key] for key in binary} == binary
        assert rewind.inspect_rollout(runs / name).startswith("rollout ")
        for other in ("calm", "wary", "other"):
            assert rewind.compare_rollouts(runs / name, runs / other) == told(
                "rewind", "diff", runs / name, runs / other
            )
            rewind.diff_rollouts(runs / name, runs / other)
    found, binary = rewind.trace_rollouts(runs), told("rewind", "pivot", runs)
    assert [e["path"] for e in found.pop("unread")] == [e["path"] for e in binary.pop("unread")]
    assert found == binary
    text = rewind.pivot_rollouts(runs)
    assert "best branch: calm (seq logprob -1.00, perplexity 1.28)" in text
    assert 'token 3 after "The plan is"' in text and "a confident split" in text
    diff = rewind.diff_rollouts(runs / "calm", runs / "wary")
    assert "generated token 2, after 2 tokens that are the same" in diff
    assert "to A, its own token was likelier by 0.80: a close call" in diff
    with pytest.raises(FileNotFoundError, match="is no rollout"):
        rewind.inspect_rollout(runs)


def test_drift_has_the_numbers_of_the_binary(tmp_path):
    def pivot(exact, again, refed, greedy=False):
        values = {"A_exact1": exact, "A_exact2": again, "A_refeed": refed}
        return {**values, "greedy_divergence_refeed": greedy, "greedy_divergence_exact2": False}

    pivots = [pivot(1, 1, -1, True), pivot(0.5, 0.5, 0.5), pivot(0, 0, 0), pivot(-1, 1, 1), pivot(2, 2, -2)]
    for name, used in (("a", pivots), ("b", pivots[:2]), ("c", pivots[2:3])):
        (tmp_path / f"{name}.json").write_text(
            json.dumps({"experiment": "e", "config": {"name": f"run {name}"}, "pivots": used})
        )
    assert rewind.drift_stats(tmp_path) == told("rewind", "drift", tmp_path)
    assert rewind.drift_stats(tmp_path / "a.json") == told("rewind", "drift", tmp_path / "a.json")
    assert "phantom" in rewind.drift_report(tmp_path / "a.json")
    assert rewind.drift_report(tmp_path).startswith("config ")
    assert rewind._drift_stats({"pivots": pivots})["refeed_flips"] == 3


def test_a_rollout_is_built_from_an_output_and_read_by_the_binary(tmp_path):
    entry = types.SimpleNamespace
    output = entry(
        token_ids=[5, 6, 7],
        logprobs=[
            {5: entry(logprob=-0.5, decoded_token="a"), 9: entry(logprob=-0.25, decoded_token="z")},
            {6: entry(logprob=-math.inf, decoded_token="b")},
        ],
    )
    tokens = rewind.extract_token_logprobs(output, max_topk=1)
    assert tokens[0] == {
        "token_id": 5, "text": "a", "logprob": -0.5, "topk": [{"token_id": 9, "text": "z", "logprob": -0.25}],
    }  # fmt: skip
    assert (tokens[1]["logprob"], tokens[2]) == (
        None,
        {"token_id": 7, "text": None, "logprob": None, "topk": []},
    )
    record = rewind.build_rollout(
        model_id="org/tiny", prompt_token_ids=[1, 2], tokens=tokens, label="x", sampling={"seed": 1}
    )
    assert rewind.write_rollout(record, tmp_path / "x") == str(tmp_path / "x" / "rollout.json")
    binary = told("rewind", "inspect", tmp_path / "x")
    assert (binary["n_tokens"], binary["n_scored"], binary["seq_logprob"], binary["text"]) == (
        3,
        1,
        -0.5,
        "ab",
    )
    assert rewind._first_divergence([1, 2], [1, 3]) == 1
    assert rewind._first_divergence([1], [1]) is None


def test_texts_of_files_cannot_drive_the_terminal(tmp_path):
    evil = "\x1b[2J\x07\nline\u202e"
    for name in "ab":
        fields = {"label": evil + name, "model_id": evil, "prefix_preview": evil + name, "vllm_version": evil}
        thaw_handle.write(tmp_path / name, thaw_handle.handle_files(name, [1, 2, 3, ord(name)], **fields))
        write_rollout(
            tmp_path / "r" / name, rollout(name + evil, [token(ord(name), evil, -1)], model_id=evil)
        )
    for text in (
        agentfs.inspect_handle(tmp_path / "a"),
        agentfs.diff_handles(tmp_path / "a", tmp_path / "b"),
        agentfs.log_handles(tmp_path),
        rewind.inspect_rollout(tmp_path / "r" / "a"),
        rewind.diff_rollouts(tmp_path / "r" / "a", tmp_path / "r" / "b"),
        rewind.pivot_rollouts(tmp_path / "r"),
    ):
        assert not set("\x1b\x07\u202e") & set(text) and "\\u001b[2J" in text
