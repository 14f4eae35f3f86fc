"""The verbs on saved sessions and rollouts, on files that a Python writer made from the formats'
description alone, and what they write read back by its reader. No model, no server."""

import fcntl
import json
import os
import pathlib
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios

import pytest
import thaw_container
import thaw_handle
from conftest import BUILD, ROOT, tiny_model
from thaw_container import Region
from thaw_handle import Handle, handle_files, rollout, token, write, write_rollout

sys.path.insert(0, str(ROOT / "scripts" / "fixtures"))
from handle_golden import CRITIC, PLANNER, TRUNK, golden_handles

THAW = BUILD / "bin" / "thaw"
GOLDEN = ROOT / "tests" / "data" / "handle"
FORMS = sorted(golden_handles())


def run(*arguments, cwd=None, env=None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(THAW), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        env={**os.environ, **(env or {})},
    )


def shown(*arguments, **keywords) -> str:
    result = run(*arguments, **keywords)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def told(*arguments, **keywords) -> dict:
    return json.loads(shown(*arguments, "--json", **keywords))


def refusal(*arguments, **keywords) -> str:
    """What a command that must fail says on stderr: one line."""
    result = run(*arguments, **keywords)
    assert result.returncode == 1, result.stdout
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("[thaw] ")
    return line


def in_a_terminal(*arguments, cwd=None, columns=100) -> str:
    """What a command shows on a terminal of that width."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("4H", 40, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen([str(THAW), *map(str, arguments)], stdout=child, cwd=cwd, env=environment)
    os.close(child)
    data = b""
    while True:
        try:
            read = os.read(parent, 65536)
        except OSError:
            break
        if not read:
            break
        data += read
    os.close(parent)
    assert process.wait(30) == 0
    return data.decode()


def test_golden_handles_are_what_their_script_writes():
    for folder, files in golden_handles().items():
        assert sorted(files) == sorted(path.name for path in (GOLDEN / folder).iterdir())
        for name, data in files.items():
            assert (GOLDEN / folder / name).read_bytes() == data, f"{folder}/{name}"


@pytest.mark.parametrize("form", FORMS)
def test_a_handle_of_the_public_project_opens_here(form):
    files = golden_handles()[form]
    manifest = json.loads(files["handle.json"])
    found = told("inspect", GOLDEN / form, "--verify")
    for key in (
        "handle_id", "parent_id", "label", "model_id", "created_at", "prefix_tokens", "num_kv_blocks",
        "num_layers", "block_shape", "tensor_parallel_size", "vllm_version", "version", "prefix_preview",
    ):  # fmt: skip
        assert found[key] == manifest[key], key
    assert found["prefix_token_ids"] == (manifest["prefix_token_ids"] or [])
    assert found["state_dir"] == str(GOLDEN / form) and found["name"] == form
    assert found["has_weights"] == (manifest["weights_path"] is not None)
    assert sorted(found["files"]) == sorted(files)
    assert found["kv_bytes"] == sum(len(data) for name, data in files.items() if name.endswith(".thawkv"))
    assert found["weights_bytes"] == sum(len(data) for name, data in files.items() if name.endswith(".thaw"))
    if "kv.thawkv.meta" in files:
        description = thaw_handle.read_sidecar(files["kv.thawkv.meta"])
        assert found["block_hashes"] == description["block_hashes"]
        assert (found["dtype"], found["block_size"]) == ("torch.float16", 4)
        assert found["layout"] == description.get("layout")
    assert found["checksums"] == ("none" if form in ("old-form", "empty", "ranks") else "right")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("verb", ["branch", "checkout"])
def test_a_handle_written_here_opens_there(tmp_path, form, verb):
    target = tmp_path / "copies" / "copy"
    line = shown(verb, GOLDEN / form, target, "--label", "a b/ü")
    assert re.match(r"\[thaw\] (branched|checked out) ", line) and line.count("\n") == 1
    source, copy = Handle(GOLDEN / form), Handle(target)
    assert copy.label == "a b/ü"
    assert re.fullmatch("[0-9a-f]{32}", copy.handle_id)
    if verb == "branch":
        assert copy.handle_id != source.handle_id and copy.parent_id == source.handle_id
        assert copy.created_at > source.created_at
    else:
        assert (copy.handle_id, copy.parent_id) == (source.handle_id, source.parent_id)
    kept = {"handle_id", "parent_id", "label", "created_at", "state_dir", "kv_path", "weights_path"}
    for key in set(Handle.FIELDS) - kept:
        assert copy.fields[key] == source.fields[key], key
    assert (copy.weights_path is None) == (source.weights_path is None)
    assert copy.description == source.description
    names = {path.name for path in (GOLDEN / form).iterdir()}
    assert {path.name for path in target.iterdir()} == names
    for name in names - {"handle.json"}:
        assert (target / name).read_bytes() == (GOLDEN / form / name).read_bytes(), name
    # And here again.
    assert told("inspect", target, "--verify")["label"] == "a b/ü"


def test_a_description_travels_alone(tmp_path):
    report = told("branch", GOLDEN / "ranks", tmp_path / "light", "--description-only")
    assert (report["kv_bytes"], report["weights_bytes"], report["has_weights"]) == (0, 0, False)
    copy = Handle(tmp_path / "light")
    assert copy.regions is None and copy.description["num_blocks"] == 3 and copy.weights_path is None
    assert told("diff", GOLDEN / "ranks", tmp_path / "light")["shared_blocks"] == 3


def test_info_reads_the_form_before_containers():
    found = told("info", GOLDEN / "old-form" / "kv.thawkv")
    assert (found["container"], found["bytes"], found["checksums"]) == ("thawkv", 528, "none")
    assert found["kv"]["num_blocks"] == 3 and found["kv"]["dtype"] == "torch.float16"
    text = shown("info", GOLDEN / "old-form" / "kv.thawkv", "--verify")
    assert "thawkv, the form before containers, 528 B" in text


def test_diff_names_the_token_where_two_part():
    found = told("diff", GOLDEN / "planner", GOLDEN / "critic")
    assert (found["shared_blocks"], found["shared_block_tokens"], found["shared_tokens"]) == (2, 8, 10)
    assert found["parts_at"] == {"token": 10, "a": PLANNER[10], "b": CRITIC[10]}
    assert (found["a"]["only_here_blocks"], found["b"]["only_here_blocks"]) == (2, 1)
    assert found["shared_bytes"] == 2 * 2 * thaw_handle.BLOCK_BYTES
    assert found["text"] == {
        "from": "previews", "shared": "Read the report. Then ", "a": "plan", "b": "doubt",
    }  # fmt: skip
    text = shown("diff", GOLDEN / "planner", GOLDEN / "critic")
    assert "2 blocks, 8 tokens (50 % of A, 66 % of B)" in text
    assert f"at token 10: A {PLANNER[10]}, B {CRITIC[10]}" in text
    assert "A planner" in text and "| B critic" in text
    # One goes on where the other ends.
    assert told("diff", GOLDEN / "trunk", GOLDEN / "trunk")["parts_at"] is None
    assert "nowhere: 12 recorded tokens are the same" in shown("diff", GOLDEN / "trunk", GOLDEN / "trunk")
    # Without recorded prompts the block is known.
    text = shown("diff", GOLDEN / "slabs", GOLDEN / "critic")
    assert "in block 2, between tokens 8 and 12" in text
    assert told("diff", GOLDEN / "slabs", GOLDEN / "critic")["shared_tokens"] is None
    assert "not known" in shown("diff", GOLDEN / "empty", GOLDEN / "critic")


def test_diff_reads_tokens_with_a_tokenizer(tmp_path):
    model = tiny_model("q4_1")
    texts = ["Read the report. Then plan the day.", "Read the report. Then doubt it."]
    ids = []
    for text in texts:
        # The tiny models' vocabulary is of bytes and a few merges: any ids below it are some text.
        ids.append([200 + byte % 30 for byte in text.encode()])
    shared = len(os.path.commonprefix(ids))
    for name, tokens in zip("ab", ids, strict=True):
        write(tmp_path / name, handle_files(name, tokens))
    found = told("diff", tmp_path / "a", tmp_path / "b", "--tokenizer", model)
    assert found["shared_tokens"] == shared and found["text"]["from"] == "tokens"
    assert found["text"]["a"] != found["text"]["b"]
    assert told("diff", tmp_path / "a", tmp_path / "b")["text"] is None
    # The weights that travel along hold one too.
    frozen = tmp_path / "weights.thaw"
    subprocess.run([str(THAW), "freeze", str(model), "-o", str(frozen)], check=True, capture_output=True)
    for name, tokens in zip("ab", ids, strict=True):
        write(tmp_path / name, handle_files(name, tokens, weights_path="x"))
        shutil.copy(frozen, tmp_path / name / "weights.thaw")
    assert told("diff", tmp_path / "a", tmp_path / "b")["text"] == found["text"]


def test_a_name_in_a_handle_opens_no_file(tmp_path):
    """model_id is looked up in the local cache, as org/name: never as a path."""
    for model in (str(tiny_model("q4_1")), "../secret/model", "a/../b", "."):
        for name, tokens in {"a": TRUNK, "b": CRITIC}.items():
            write(tmp_path / name, handle_files(name, tokens, model_id=model))
        assert told("diff", tmp_path / "a", tmp_path / "b")["text"] is None, model


def test_different_models_share_no_blocks(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, handle_files(name, TRUNK, model_id=f"org/{name}"))
    found = told("diff", tmp_path / "a", tmp_path / "b")
    assert (found["same_model"], found["shared_blocks"], found["shared_bytes"]) == (False, 3, 0)
    text = shown("diff", tmp_path / "a", tmp_path / "b")
    assert "differ: A org/a, B org/b" in text and "of the same text only" in text


def test_log_is_a_tree(tmp_path):
    for form in FORMS:
        shutil.copytree(GOLDEN / form, tmp_path / form)
    shown("branch", tmp_path / "planner", tmp_path / "leaf", "--label", "leaf")
    (tmp_path / "notes").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "trunk")
    write(tmp_path / "broken", {"handle.json": b"{"})
    found = told("log", tmp_path)
    by_name = {handle["name"]: handle for handle in found["handles"]}
    assert sorted(by_name) == sorted([*FORMS, "leaf"])
    assert sorted(by_name["trunk"]["children"]) == [str(tmp_path / name) for name in ("critic", "planner")]
    assert by_name["leaf"]["parent"] == str(tmp_path / "planner")
    assert (by_name["leaf"]["shared_with_parent"], by_name["critic"]["shared_with_parent"]) == (4, 2)
    assert [entry["path"] for entry in found["unread"]] == [str(tmp_path / "broken")]
    assert found["kv_bytes"] == sum(handle["kv_bytes"] for handle in found["handles"])
    text = shown("log", tmp_path)
    lines = text.splitlines()
    trunk = next(i for i, line in enumerate(lines) if line.startswith("trunk "))
    assert [line[:11] for line in lines[trunk + 1 : trunk + 4]] == [
        "|- critic  ",
        "`- planner ",
        "   `- leaf ",
    ]
    assert "shares 2, +1" in lines[trunk + 1] and "3 blk" in lines[trunk + 1]
    assert "shares 4, +0" in lines[trunk + 3]
    assert f"not read: {tmp_path / 'broken'}: handle.json: it is no JSON object" in text
    assert shown("log", tmp_path / "notes") == f"no handles in {tmp_path / 'notes'}\n"
    assert told("log", tmp_path / "notes")["handles"] == []
    assert told("log", tmp_path / "trunk")["handles"][0]["name"] == "trunk"


def test_a_terminal_gets_colours_and_lines_and_a_pipe_none():
    rich = in_a_terminal("log", GOLDEN)
    assert "\x1b[" in rich and "├─ " in rich
    plain = shown("log", GOLDEN)
    assert "\x1b" not in plain and plain.isascii() and "|- " in plain
    rich = in_a_terminal("diff", GOLDEN / "planner", GOLDEN / "critic", columns=60)
    assert "█" in rich and "│" in rich
    bare = re.sub(r"\x1b\[[0-9;]*m", "", rich)
    assert all(len(line) <= 60 for line in bare.splitlines() if "│" in line or "█" in line)


def test_text_of_files_cannot_drive_the_terminal(tmp_path):
    evil = "\x1b[2J\x1b]0;owned\x07\nline\u202e"
    write(
        tmp_path / "a",
        handle_files("a", TRUNK, label=evil, model_id=evil, prefix_preview=evil + "a", vllm_version=evil),
    )
    write(tmp_path / "b", handle_files("b", CRITIC, label=evil, prefix_preview=evil + "b"))
    for name in "ab":
        write_rollout(
            tmp_path / "r" / name,
            rollout(name + evil, [token(1, evil, -1), token(ord(name), evil, -2)], model_id=evil),
        )
    for command in (
        ["inspect", tmp_path / "a"],
        ["diff", tmp_path / "a", tmp_path / "b"],
        ["log", tmp_path],
        ["branch", tmp_path / "a", tmp_path / "c"],
        ["rewind", "inspect", tmp_path / "r" / "a"],
        ["rewind", "diff", tmp_path / "r" / "a", tmp_path / "r" / "b"],
        ["rewind", "pivot", tmp_path / "r"],
    ):
        text = shown(*command)
        assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text, command
        assert "\\u001b[2J" in text, command


def test_checkpoint_makes_a_handle_of_a_file_of_kv(tmp_path):
    description = thaw_handle.describe(TRUNK)
    regions = thaw_handle.payload_regions(description)

    def written(name: str, metadata: dict | None = None) -> pathlib.Path:
        extra = [] if metadata is None else [Region("metadata", 0, json.dumps(metadata).encode())]
        path = tmp_path / name
        path.write_bytes(thaw_container.encode([*regions, *extra]))
        path.with_name(name + ".meta").write_bytes(thaw_handle.sidecar(description))
        return path

    ours = written("ours.thawkv", {"content": "kv", "model": "org/tiny", "token_ids": TRUNK})
    report = told("checkpoint", ours, tmp_path / "a", "--label", "first", "--parent", GOLDEN / "trunk")
    copy = Handle(tmp_path / "a")
    assert (copy.model_id, copy.label, copy.prefix_token_ids) == ("org/tiny", "first", TRUNK)
    assert copy.parent_id == Handle(GOLDEN / "trunk").handle_id and copy.handle_id == report["handle_id"]
    assert (copy.prefix_tokens, copy.num_kv_blocks, copy.max_block_id) == (12, 3, 11)
    assert copy.slabs() == Handle(GOLDEN / "trunk").slabs()
    assert told("diff", tmp_path / "a", GOLDEN / "trunk")["shared_blocks"] == 3

    theirs = written("theirs.thawkv")
    assert "does not say which model's KV" in refusal("checkpoint", theirs, tmp_path / "b")
    shown("checkpoint", theirs, tmp_path / "b", "--model", "org/other")
    assert Handle(tmp_path / "b").model_id == "org/other"
    weights = written("weights.thawkv", {"content": "weights"})
    assert "holds weights, not KV" in refusal("checkpoint", weights, tmp_path / "c")
    ranks = written("r.thawkv", {"content": "kv", "model": "m", "tensor_parallel_size": 2})
    assert "one of several ranks" in refusal("checkpoint", ranks, tmp_path / "c")
    data = bytearray(theirs.read_bytes())
    data[-1] ^= 1
    theirs.write_bytes(data)
    assert "is damaged" in refusal("checkpoint", theirs, tmp_path / "c", "--model", "m")
    ours.with_name("ours.thawkv.meta").unlink()
    assert "ours.thawkv.meta: no such file" in refusal("checkpoint", ours, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_what_is_damaged_is_not_copied_on(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(GOLDEN / "trunk", source)
    data = bytearray((source / "kv.thawkv").read_bytes())
    data[-1] ^= 1
    (source / "kv.thawkv").write_bytes(data)
    for command in (
        ["inspect", source, "--verify"],
        ["branch", source, tmp_path / "x"],
        ["checkout", source, tmp_path / "x"],
    ):
        assert "kv.thawkv: kv_live_block 0 is damaged: the checksum of its 192 bytes" in refusal(*command)
        assert not (tmp_path / "x").exists()
    shown("checkout", source, tmp_path / "x", env={"THAW_VERIFY": "0"})
    assert (tmp_path / "x" / "kv.thawkv").read_bytes() == bytes(data)


def test_refusals_are_one_line(tmp_path):
    assert "is no handle" in refusal("inspect", tmp_path)
    assert "is no handle" in refusal("inspect", tmp_path / "none")
    assert "is no handle" in refusal("diff", GOLDEN / "trunk", tmp_path)
    assert "no such directory" in refusal("log", tmp_path / "none")
    assert "it is a handle" in refusal("branch", GOLDEN / "trunk", GOLDEN / "critic")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("all of it")
    assert "holds thesis.txt" in refusal("checkout", GOLDEN / "trunk", tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    outside = write(tmp_path / "outside", {"kv.thawkv": b"secret"})
    linked = tmp_path / "linked"
    shutil.copytree(GOLDEN / "trunk", linked)
    (linked / "kv.thawkv").unlink()
    (linked / "kv.thawkv").symlink_to(outside / "kv.thawkv")
    assert "kv.thawkv is a symbolic link" in refusal("inspect", linked)
    assert "kv.thawkv is a symbolic link" in refusal("branch", linked, tmp_path / "x")
    assert "is no rollout" in refusal("rewind", "inspect", tmp_path)
    assert "is no rollout" in refusal("rewind", "diff", tmp_path, tmp_path)
    assert "no such directory" in refusal("rewind", "pivot", tmp_path / "none")
    pair = [GOLDEN / "trunk", GOLDEN / "critic"]
    assert "no model in this directory" in refusal("diff", *pair, "--tokenizer", tmp_path)
    assert "subcommand is required" in refusal()
    assert "subcommand is required" in refusal("rewind")
    assert "target is required" in refusal("branch", GOLDEN / "trunk")
    many = ["--label", "a", "--label", "b", GOLDEN / "trunk", tmp_path / "x"]
    assert "a branch has one --label" in refusal("branch", *many)
    assert "--nonsense" in refusal("log", tmp_path, "--nonsense")


def test_every_verb_has_help():
    listed = shown("--help")
    for verb in ("inspect", "diff", "log", "branch", "checkout", "rewind"):
        assert re.search(rf"^  {verb} ", listed, re.M), verb
        text = shown(verb, "--help")
        assert text.startswith(("Usage:", "\n")) or "Usage:" in text
        assert verb == "rewind" or "--json" in text
    assert "pivot" in shown("rewind", "--help")


# Rollouts.


@pytest.fixture
def rollouts(tmp_path):
    """Three that part at tokens 2 and 3; "calm" is the likeliest."""
    start = [token(10, "The", -0.1), token(11, " plan", -0.2)]
    plain = token(12, " is", -0.4, (13, " may", -1.2))
    doubt = token(13, " may", -1.2, (12, " is", -0.4))
    for name, tail in {
        "calm": [plain, token(20, " good", -0.3, (21, " bad", -1.5))],
        "bold": [plain, token(21, " bad", -1.5, (20, " good", -0.3)), token(22, ".", -0.1)],
        "wary": [doubt, token(23, " fail", -0.9)],
    }.items():
        write_rollout(tmp_path / "runs" / name, rollout(name, start + tail))
    return tmp_path / "runs"


def test_rewind_inspect_scores_a_rollout(rollouts):
    found = told("rewind", "inspect", rollouts / "calm")
    assert (found["n_tokens"], found["n_scored"], found["prompt_tokens"], found["fork_index"]) == (4, 4, 4, 4)
    assert found["seq_logprob"] == pytest.approx(-1.0)
    assert found["mean_logprob"] == pytest.approx(-0.25)
    assert found["perplexity"] == pytest.approx(1.2840254)
    assert found["sampling"] == {"temperature": 0.8, "top_p": 0.95, "seed": 42}
    text = shown("rewind", "inspect", rollouts / "calm" / "rollout.json")
    assert "temperature 0.8, top_p 0.95, seed 42" in text and '"The plan is good"' in text


def test_rewind_diff_tells_what_each_thought_of_the_other(rollouts):
    found = told("rewind", "diff", rollouts / "calm", rollouts / "wary")
    assert found["same_prompt"] and found["shared_tokens"] == 2
    pivot = found["pivot"]
    assert (pivot["position"], pivot["text_before"]) == (2, "The plan")
    assert (pivot["a"]["text"], pivot["b"]["text"]) == (" is", " may")
    assert pivot["b_in_a"] == {"rank": 2, "logprob": -1.2}
    assert pivot["a_in_b"] == {"rank": 1, "logprob": -0.4}
    assert pivot["margin"] == pytest.approx(0.8)
    text = shown("rewind", "diff", rollouts / "calm", rollouts / "wary")
    assert "generated token 2, after 2 tokens that are the same" in text
    assert '" is", logprob -0.40; B had it at rank 1, logprob -0.40' in text
    assert "likelier by 0.80: a close call" in text
    assert told("rewind", "diff", rollouts / "calm", rollouts / "calm")["pivot"] is None
    assert "none: the same tokens" in shown("rewind", "diff", rollouts / "calm", rollouts / "calm")


def test_rewind_pivot_finds_where_siblings_part_and_what_decided(rollouts):
    (group,) = told("rewind", "pivot", rollouts)["groups"]
    assert [entry["name"] for entry in group["rollouts"]] == ["calm", "bold", "wary"]
    first, second = group["pivots"]
    assert (first["position"], first["text_before"]) == (2, "The plan")
    assert [option["rollouts"] for option in first["options"]] == [["calm", "bold"], ["wary"]]
    assert [option["next_pivot"] for option in first["options"]] == [1, None]
    assert [option["token"]["text"] for option in second["options"]] == [" good", " bad"]
    assert group["best"] == "calm"
    decided = group["decided_by"]
    assert (decided["position"], decided["token"]["text"], decided["runner_up"]) == (3, " good", "bold")
    assert decided["margin"] == pytest.approx(1.2)
    text = shown("rewind", "pivot", rollouts)
    assert "first divergence at generated token 2" in text
    assert "best branch: calm (seq logprob -1.00, perplexity 1.28)" in text
    assert 'decided by token 3: " good" over " bad" of bold, by 1.20 in logprob: a confident split' in text


def test_rewind_pivot_takes_what_it_finds(rollouts, tmp_path):
    # Another prompt makes another group; what cannot be read is named; numbers may be missing.
    write_rollout(rollouts / "other", rollout("other", [token(1, "x", -1)], prompt=(9, 9)))
    bare = [{"token_id": 10, "text": None, "logprob": None, "topk": []}]
    write_rollout(rollouts / "bare", rollout(None, bare, text=""))
    (rollouts / "broken").mkdir()
    (rollouts / "broken" / "rollout.json").write_text('{"version": 1, "tokens": [')
    found = told("rewind", "pivot", rollouts)
    assert sorted(len(group["rollouts"]) for group in found["groups"]) == [1, 4]
    assert [entry["path"] for entry in found["unread"]] == [str(rollouts / "broken")]
    text = shown("rewind", "pivot", rollouts)
    assert "a pivot takes two rollouts of one prompt" in text and "(ends)" in text
    empty = tmp_path / "empty"
    empty.mkdir()
    assert shown("rewind", "pivot", empty) == f"no rollouts in {empty}\n"


def test_rewind_drift_counts_flips_against_the_floor(tmp_path):
    def pivot(exact, again, refeed, greedy=False):
        return {
            "A_exact1": exact, "A_exact2": again, "A_refeed": refeed, "greedy_divergence_refeed": greedy,
            "greedy_divergence_exact2": False,
        }  # fmt: skip

    one = [
        pivot(1, 1, -1, True),
        pivot(0.5, 0.25, 0.1),
        pivot(-1, 0, 1),
        pivot(0, 0, 2),
        pivot(0, 0, 0, True),
    ]
    record = {"experiment": "re-feeding", "config": {"name": "small"}, "pivots": one}
    (tmp_path / "a.json").write_text(json.dumps(record))
    (stats,) = told("rewind", "drift", tmp_path / "a.json")["results"]
    assert (stats["name"], stats["n_pivots"], stats["n_eligible"]) == ("small", 5, 4)
    assert (stats["refeed_flips"], stats["floor_flips"], stats["phantom"]) == (3, 1, 2)
    assert stats["excess_pp"] == pytest.approx(50) and stats["gdiv_refeed_rate"] == pytest.approx(0.4)
    text = shown("rewind", "drift", tmp_path / "a.json")
    assert "75.0 %, 3 of 4" in text and "25.0 %, 1 of 4 (the floor)" in text and "+50.0 points" in text
    (tmp_path / "b.json").write_text(json.dumps({"pivots": [pivot(1, 1, 1)]}))
    (tmp_path / "c.json").write_text(json.dumps({"pivots": [pivot(0, 0, 0)]}))
    assert [line.split()[0] for line in shown("rewind", "drift", tmp_path).splitlines()] == [
        "config",
        "small",
        "b",
    ]
    assert "no pivots with an advantage" in shown("rewind", "drift", tmp_path / "c.json")
    (tmp_path / "d.json").write_text("[]")
    assert "d.json: it is no JSON object with a list of pivots" in refusal("rewind", "drift", tmp_path)
    assert "no such file" in refusal("rewind", "drift", tmp_path / "none")


def examples(page: str) -> list[tuple[str, str]]:
    """(command, expected output) of every `$ thaw ...` in a page's indented blocks."""
    found: list[tuple[str, list[str]]] = []
    for line in (ROOT / "docs" / page).read_text().splitlines():
        if line.startswith("    $ thaw "):
            found.append((line.removeprefix("    $ thaw "), []))
        elif found and (line.startswith("    ") or not line.strip()) and found[-1][1] is not None:
            found[-1][1].append(line.removeprefix("    ").rstrip())
        elif found:
            found.append(("", []))
    return [(command, "\n".join(lines).strip("\n")) for command, lines in found if command]


def test_the_examples_of_the_page_run(tmp_path, rollouts):
    shutil.copytree(GOLDEN, tmp_path / "agents")
    for form in FORMS:
        if form not in ("trunk", "planner", "critic"):
            shutil.rmtree(tmp_path / "agents" / form)
    ran = 0
    for command, expected in examples("cli.md"):
        if "--url" in command:
            continue
        output = shown(*command.split(), cwd=tmp_path).strip("\n")
        pattern = re.escape(expected).replace(re.escape("..."), ".*")
        assert re.fullmatch(pattern, output, re.S if "..." in expected else 0), f"{command}\n{output}"
        ran += 1
    assert ran >= 7


def test_the_page_names_every_key_and_flag():
    text = pathlib.Path(ROOT / "docs" / "cli.md").read_text()
    keys = set(told("inspect", GOLDEN / "trunk")) | set(told("diff", GOLDEN / "trunk", GOLDEN / "critic"))
    keys |= set(told("log", GOLDEN)) | set(told("log", GOLDEN)["handles"][0])
    missing = sorted(key for key in keys if f"`{key}`" not in text)
    assert not missing
