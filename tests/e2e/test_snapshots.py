"""Models frozen to `.thaw` files are served from them with the same bits; damaged files say so."""

import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import thaw_container
from conftest import BUILD, ROOT, real_model, tiny_model

sys.path.insert(0, str(ROOT / "scripts" / "fixtures"))
from container_golden import golden_files

THAW = BUILD / "bin" / "thaw"
PROMPTS = [list(range(30, 90)), "The history of the river", [5, 9, 200, 17]]


def run(*arguments, env=None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(THAW), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **(env or {})},
    )


def freeze(model, output: pathlib.Path, *flags) -> pathlib.Path:
    result = run("freeze", "--model", model, "--output", output, *flags)
    assert result.returncode == 0, result.stderr
    assert all(line.startswith("[thaw] ") for line in result.stdout.splitlines())
    assert not list(output.parent.glob("*-incomplete"))
    return output


def info(path, *flags) -> dict:
    result = run("info", path, "--json", *flags)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def refusal(*arguments, env=None) -> str:
    """What a command that must fail says on stderr: one line."""
    result = run(*arguments, env=env)
    assert result.returncode == 1, result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("[thaw] ")
    return line


def export(folder: pathlib.Path, *arguments) -> pathlib.Path:
    script = ROOT / "scripts" / "export_hf.py"
    subprocess.run([sys.executable, str(script), str(folder), *map(str, arguments)], check=True)
    return folder


def answers(server) -> list:
    """Tokens and log-probabilities, as the server writes them: equal texts are equal bits."""
    found = []
    for prompt in PROMPTS:
        body = {"prompt": prompt, "max_tokens": 16, "temperature": 0, "logprobs": 10, "ignore_eos": True}
        status, reply = server.post("/v1/completions", body)
        assert status == 200, reply
        found.append(reply["choices"][0])
    chat = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}
    status, reply = server.post("/v1/chat/completions", chat)
    return [*found, reply["choices"]] if status == 200 else [*found, reply["error"]["message"]]


def served_names(server) -> list[str]:
    return [entry["id"] for entry in json.loads(server.get("/v1/models")[1])["data"]]


@pytest.mark.parametrize("kind", ["q4_1", "mixed-k", "qwen3-q8_0"])
def test_a_gguf_file_is_served_from_its_snapshot(serve, tmp_path, kind):
    frozen = freeze(tiny_model(kind), tmp_path / "weights.thaw")
    original = serve(model=tiny_model(kind))
    by_flag = serve("--snapshot", str(frozen), model="org/any-name")
    assert served_names(by_flag) == ["org/any-name"]
    by_path = serve(model=frozen)
    assert served_names(by_path) == [f"tiny-{kind}"]
    expected = answers(original)
    assert answers(by_flag) == expected
    assert answers(by_path) == expected
    assert by_flag.post("/tokenize", {"prompt": "Hi"}) == original.post("/tokenize", {"prompt": "Hi"})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_directory_is_served_from_its_snapshot(serve, tmp_path, dtype):
    folder = export(tmp_path / "tiny-hf", tiny_model("f32"), "--dtype", dtype)
    frozen = freeze(folder, tmp_path / "weights.thaw", "--dtype", dtype)
    again = freeze(frozen, tmp_path / "again.thaw")
    assert again.read_bytes() == frozen.read_bytes()
    assert answers(serve(model=frozen)) == answers(serve(model=folder))
    assert info(frozen)["frozen_from"] == "safetensors"
    # The model on this machine that a snapshot is said to be of is the one that was frozen.
    assert served_names(serve("--snapshot", str(frozen), model=folder)) == ["tiny-hf"]
    line = refusal("serve", "--model", tiny_model("qwen2-q4_1"), "--snapshot", frozen)
    assert "was frozen from another model than" in line
    other = "float32" if dtype == "bfloat16" else "float16"
    line = refusal("freeze", "--model", folder, "-o", tmp_path / "x.thaw", "--dtype", other)
    assert f"--dtype {other}: the weights are stored as" in line


def test_shards_are_served_as_the_whole(serve, tmp_path):
    model = tiny_model("mixed")
    frozen = freeze(model, tmp_path / "weights.thaw", "-tp", "3")
    names = ["weights.rank1.thaw", "weights.rank2.thaw", "weights.thaw"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for rank, name in enumerate(["weights.thaw", *names[:2]]):
        shard = info(tmp_path / name, "--verify")
        assert (shard["tensor_parallel_rank"], shard["tensor_parallel_size"]) == (rank, 3)
    assert answers(serve("--snapshot", str(frozen), model="m")) == answers(serve(model=model))
    (tmp_path / "weights.rank2.thaw").unlink()
    assert "weights.rank2.thaw is missing" in refusal("serve", "--snapshot", frozen)


def test_the_default_model_is_served_from_its_snapshot(serve, tmp_path):
    frozen = freeze(real_model(), tmp_path / "weights.thaw")
    assert answers(serve(model=frozen)) == answers(serve(model=real_model()))


def test_the_python_reader_and_writer_agree_with_ours(serve, tmp_path):
    model = export(tmp_path / "tiny-hf", tiny_model("f32"), "--dtype", "bfloat16")
    frozen = freeze(model, tmp_path / "weights.thaw")
    version, commit, regions = thaw_container.read(frozen)
    assert (version, commit) == (2, "")
    assert [region.logical_id for region in regions] == [*range(len(regions) - 1), 0]
    assert {region.kind for region in regions[:-1]} == {"weights"} and regions[-1].kind == "metadata"
    assert all(region.offset % 4096 == 0 for region in regions)
    document = json.loads(regions[-1].payload)
    # The digest as FORMAT.md defines it, from the payloads; and these are the model's own bytes.
    lines = []
    stored = (model / "model.safetensors").read_bytes()
    for tensor in document["tensors"]:
        size = 2
        for extent in tensor["shape"]:
            size *= extent
        payload = regions[tensor["region"]].payload[tensor["offset"] : tensor["offset"] + size]
        assert len(payload) == size and payload in stored, tensor["name"]
        shape = "x".join(map(str, tensor["shape"]))
        digest = hashlib.sha256(payload).hexdigest()[:32]
        lines.append(f"{tensor['name']} {tensor['dtype']} {shape} {digest}\n")
    digest = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()[:32]
    assert digest == document["weights_digest"] == info(frozen)["weights_digest"]
    assert document["texts"]["tokenizer.json"] == (model / "tokenizer.json").read_text()
    # Written again by Python, in either version and however it is laid out, it is the same model.
    expected = answers(serve(model=frozen))
    for name, form in {
        "one": {"version": 1},
        "packed": {"alignment": 1},
        "moved": {"table_last": True, "commit": "c" * 40},
    }.items():
        path = tmp_path / f"{name}.thaw"
        path.write_bytes(thaw_container.encode(regions, **form))
        assert answers(serve(model=path)) == expected, name


def test_golden_files_are_what_their_script_writes():
    for name, data in golden_files().items():
        assert (ROOT / "tests" / "data" / "container" / name).read_bytes() == data, name


def test_info_tells_what_a_file_holds(tmp_path):
    frozen = freeze(tiny_model("q4_1"), tmp_path / "weights.thaw")
    report = info(frozen)
    assert (report["container"], report["version"], report["family"]) == ("thaw", 2, "llama")
    assert report["bytes"] == frozen.stat().st_size
    assert report["kinds"]["weights"]["regions"] + 1 == len(report["regions"])
    assert report["checksums"] == "not compared"
    assert info(frozen, "--verify")["checksums"] == "right"
    text = run("info", frozen).stdout
    assert "fingerprint    " + report["fingerprint"] in text and "Q4_1" in text
    golden = ROOT / "tests" / "data" / "container"
    old = info(golden / "v1.thaw", "--verify")
    assert (old["version"], old["checksums"], "model" in old) == (1, "none", False)
    assert info(golden / "v2.thaw")["engine_commit"] == "0123456789abcdef0123456789abcdef01234567"

    kv = tmp_path / "kv.thawkv"
    kv.write_bytes(thaw_container.encode([thaw_container.Region("kv_live_block", 0, b"k" * 64)]))
    description = json.dumps({"num_blocks": 1, "block_size": 16, "dtype": "torch.float16"}).encode()
    head = b"THAWKV\0\0" + len(description).to_bytes(4, "little")
    (tmp_path / "kv.thawkv.meta").write_bytes(head + description)
    assert info(kv)["kv"] == {"num_blocks": 1, "block_size": 16, "dtype": "torch.float16"}
    (tmp_path / "kv.thawkv.meta").write_bytes(head + description[:-1])
    assert "kv.thawkv.meta: truncated" in refusal("info", kv)


def test_a_damaged_file_is_not_served(serve, tmp_path):
    frozen = freeze(tiny_model("q4_1"), tmp_path / "weights.thaw")
    expected = answers(serve(model=frozen))
    data = bytearray(frozen.read_bytes())
    offset = info(frozen)["regions"][0]["offset"]
    data[offset + 100] ^= 1
    frozen.write_bytes(data)
    for arguments in (["serve", "--snapshot", frozen], ["info", frozen, "--verify"]):
        assert "weights.thaw: weights 0 is damaged: the checksum of its" in refusal(*arguments)
    # Those who ask for it get it, in this process only: nothing unchecked is kept for others.
    server = serve("--snapshot", str(frozen), model="m", env={**os.environ, "THAW_VERIFY": "0"})
    answers(server)
    assert "is damaged" in refusal("serve", "--snapshot", frozen)
    data[offset + 100] ^= 1
    frozen.write_bytes(data)
    assert answers(serve(model=frozen)) == expected


def test_what_cannot_be_done_is_one_line(tmp_path):
    model = tiny_model("q4_1")
    assert "none.thaw: no such file" in refusal("serve", "--snapshot", tmp_path / "none.thaw")
    assert "not a thaw container" in refusal("serve", "--snapshot", model)
    foreign = ROOT / "tests" / "data" / "container" / "v2-packed.thaw"
    assert "its metadata does not say what the file holds" in refusal("serve", "--snapshot", foreign)
    missing = tmp_path / "none" / "w.thaw"
    assert "No such file or directory" in refusal("freeze", "--model", model, "--output", missing)
    assert "only local files" in refusal("freeze", "--model", model, "-o", "gs://bucket/w.thaw")
    assert "no such file" in refusal("freeze", "--model", tmp_path / "none.gguf", "-o", tmp_path / "w.thaw")
    result = run("info", model, "--verify")
    assert result.returncode == 1 and "--verify compares the checksums of .thaw" in result.stderr
    result = run("freeze", "--model", model)
    assert result.returncode == 1 and "--output" in result.stderr


def test_a_freeze_that_is_killed_leaves_the_old_file(tmp_path):
    frozen = freeze(tiny_model("q4_1"), tmp_path / "weights.thaw")
    old = frozen.read_bytes()
    command = [str(THAW), "freeze", "--model", str(real_model()), "--output", str(frozen)]
    incomplete = tmp_path / "weights.thaw.thaw-incomplete"
    for grown in (1, 1 << 20, 40 << 20):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if incomplete.exists() and incomplete.stat().st_blocks * 512 >= grown:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert frozen.read_bytes() == old or info(frozen, "--verify")["family"] == "llama"
    freeze(real_model(), frozen)
    assert info(frozen, "--verify")["checksums"] == "right"
