"""Models frozen to `.thaw` files are served from them with the same bits; damaged files say so."""

import hashlib
import json
import os
import pathlib
import signal
import struct
import subprocess
import sys
import time

import numpy as np
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


def export_as(folder: pathlib.Path, kind: str, dtype: str) -> pathlib.Path:
    """A tiny model as a directory, in any type: export() rounds to none of float16."""
    if dtype != "float16":
        return export(folder, tiny_model(kind), "--dtype", dtype)
    export(folder, tiny_model(kind), "--dtype", "float32")
    path = folder / "model.safetensors"
    stored = path.read_bytes()
    (size,) = struct.unpack_from("<Q", stored)
    header, data, end = json.loads(stored[8 : 8 + size]), b"", 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, last = (8 + size + offset for offset in entry["data_offsets"])
        data += np.frombuffer(stored[first:last], "<f4").astype("<f2").tobytes()
        entry |= {"dtype": "F16", "data_offsets": [end, len(data)]}
        end = len(data)
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    return folder


def public_project_file(frozen: pathlib.Path, path: pathlib.Path, version=2, padded_rows=0) -> pathlib.Path:
    """The same weights as the public project writes them: no metadata, a vocabulary filled up."""
    _, _, regions = thaw_container.read(frozen)
    weights = [region for region in regions if region.kind == "weights"]
    document = json.loads(regions[-1].payload)
    embedding = next(tensor for tensor in document["tensors"] if "embed_tokens" in tensor["name"])
    rows, columns = embedding["shape"]
    row = len(weights[embedding["region"]].payload) // rows
    assert row in (2 * columns, 4 * columns)
    for tensor in document["tensors"]:
        if "embed_tokens" in tensor["name"] or "lm_head" in tensor["name"]:
            weights[tensor["region"]].payload += bytes(row * padded_rows)
    path.write_bytes(thaw_container.encode(weights, version=version))
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["f32", "untied"])
def test_a_file_of_the_public_project_is_served_as_the_model_that_is_named(serve, tmp_path, dtype, kind):
    folder = export_as(tmp_path / "tiny-hf", kind, dtype)
    frozen = freeze(folder, tmp_path / "frozen.thaw")
    # vLLM fills the vocabulary of 520 up to a multiple of 64.
    padded_rows = 56 if dtype == "bfloat16" else 0
    theirs = public_project_file(frozen, tmp_path / "weights.thaw", padded_rows=padded_rows)
    expected = answers(serve(model=folder))
    # The directory says what the regions are; its own weights are not needed.
    (folder / "model.safetensors").unlink()
    server = serve("--snapshot", str(theirs), model=folder)
    assert served_names(server) == ["tiny-hf"]
    assert answers(server) == expected
    # Frozen again it says all that itself.
    again = tmp_path / "again.thaw"
    result = run("freeze", "--model", folder, "--snapshot", theirs, "-o", again)
    assert result.returncode == 0, result.stderr
    assert info(again)["weights_digest"] == info(frozen)["weights_digest"]
    assert answers(serve(model=again)) == expected


def test_what_does_not_fit_a_file_of_the_public_project_is_named(serve, tmp_path):
    folder = export_as(tmp_path / "tiny-hf", "f32", "float16")
    frozen = freeze(folder, tmp_path / "frozen.thaw")
    theirs = public_project_file(frozen, tmp_path / "weights.thaw", version=1)
    expected = answers(serve(model=folder))
    assert answers(serve("--snapshot", str(theirs), model=folder)) == expected
    assert "it has no metadata" in refusal("serve", "--snapshot", theirs)
    assert "does not say what its regions are" in refusal(
        "serve", "--snapshot", theirs, "--model", tiny_model("f32")
    )
    _, _, regions = thaw_container.read(theirs)

    def refused(change) -> str:
        changed = [thaw_container.Region(r.kind, r.logical_id, r.payload) for r in regions]
        path = tmp_path / "changed.thaw"
        path.write_bytes(thaw_container.encode(change(changed) or changed))
        return refusal("serve", "--snapshot", path, "--model", folder)

    assert f"it has {len(regions) - 1} weights, the model has {len(regions)}" in refused(lambda r: r[:-1])

    def shorter(changed):
        changed[2].payload = changed[2].payload[:-2]

    assert "changed.thaw is not tiny-hf: weights 2 have" in refused(shorter)

    def cut(changed):
        changed[0].payload = changed[0].payload[:-64]

    assert "model.embed_tokens.weight has" in refused(cut)

    def zero(changed):
        changed[0].payload = bytes(len(changed[0].payload))

    assert "its embeddings are no weights" in refused(zero)

    def renumbered(changed):
        changed[0].logical_id, changed[1].logical_id = 1, 0

    assert "not numbered in order" in refused(renumbered)
    damaged = bytearray(public_project_file(frozen, tmp_path / "damaged.thaw").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "damaged.thaw").write_bytes(damaged)
    for command in (["serve"], ["freeze", "-o", tmp_path / "x.thaw"]):
        line = refusal(*command, "--snapshot", tmp_path / "damaged.thaw", "--model", folder)
        assert "is damaged: the checksum of its" in line
    assert not (tmp_path / "x.thaw").exists()
    (tmp_path / "weights.rank1.thaw").write_bytes(theirs.read_bytes())
    assert "one of several shards" in refusal("serve", "--snapshot", theirs, "--model", folder)
