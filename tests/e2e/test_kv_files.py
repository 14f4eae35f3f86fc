"""KV in files: frozen, served from, spilled and found again after restarts, with the same bits."""

import base64
import hashlib
import json
import os
import pathlib
import signal
import struct
import subprocess
import time

import pytest
import thaw_container
from conftest import BUILD, tiny_model
from thaw_server import ThawServer

THAW = BUILD / "bin" / "thaw"
PROMPT = "The history of the river is long, and nobody has written all of it down. " * 4
BLOCK = 16
SPILL = ("--fork-min-prefix-tokens", "32")


def freeze(folder: pathlib.Path, *flags, model=None, env=None) -> pathlib.Path:
    kv = folder / "trunk.thawkv"
    result = subprocess.run(
        [THAW, "freeze", "--model", model or tiny_model(), "--output", folder / "w.thaw"]
        + ["--kv-output", kv, *flags],
        capture_output=True,
        text=True,
        timeout=120,
        env=env,
    )
    assert result.returncode == 0, result.stderr
    assert all(line.startswith("[thaw] ") for line in result.stdout.splitlines()), result.stdout
    assert "[thaw] KV cache: " in result.stdout
    assert not list(folder.glob("*-incomplete"))
    return kv


@pytest.fixture(scope="module")
def frozen(tmp_path_factory, image_cache) -> pathlib.Path:
    return freeze(tmp_path_factory.mktemp("kv"), "--kv-warmup-prompt", PROMPT, env=image_cache)


def ask(server: ThawServer, prompt: str, headers=None) -> tuple[str, int, int]:
    """(text, prompt tokens, cached ones) of a greedy answer."""
    body = {"prompt": prompt, "max_tokens": 12, "temperature": 0}
    status, answer = server.post("/v1/completions", body, headers)
    assert status == 200, answer
    usage = answer["usage"]
    return (
        answer["choices"][0]["text"],
        usage["prompt_tokens"],
        usage["prompt_tokens_details"]["cached_tokens"],
    )


def cache_root(document: dict) -> bytes:
    """As docs/protocol.md has it."""
    parts = [b"thaw-cache-root-1", document["engine_fingerprint"].encode()]
    parts += [document[key].encode() for key in ("tenant", "cache_salt", "adapter")]
    text = b"".join(b"%d:%s" % (len(part), part) for part in parts)
    return hashlib.sha256(text).digest()[:16]


def chain(root: bytes, tokens: list[int]) -> list[bytes]:
    names = []
    for at in range(0, len(tokens), BLOCK):
        block = struct.pack(f"<{BLOCK}I", *tokens[at : at + BLOCK])
        root = hashlib.sha256(root + block).digest()[:16]
        names.append(root)
    return names


def test_a_file_of_kv_is_what_its_description_says(frozen):
    version, _, regions = thaw_container.read(frozen)
    assert version == 2
    *blocks, metadata = regions
    document = json.loads(metadata.payload)
    assert metadata.kind == "metadata" and document["content"] == "kv" and document["format"] == 1
    assert document["block_size"] == BLOCK
    tokens = document["token_ids"]
    assert len(tokens) > 64 and len(tokens) == BLOCK * len(blocks)
    assert [region.logical_id for region in blocks] == list(range(len(blocks)))
    assert all(len(region.payload) == document["block_bytes"] for region in blocks)
    assert any(any(region.payload) for region in blocks)
    root = cache_root(document)
    assert document["cache_root"] == root.hex()

    sidecar = pathlib.Path(f"{frozen}.meta").read_bytes()
    assert sidecar[:8] == b"THAWKV\0\0"
    (size,) = struct.unpack_from("<I", sidecar, 8)
    assert len(sidecar) == 12 + size
    meta = json.loads(sidecar[12:])
    assert meta["num_blocks"] == len(blocks) == len(meta["block_ids"])
    hashes = [base64.b64decode(text) for text in meta["block_hashes"]]
    assert all(len(value) == 36 for value in hashes)
    assert [value[:16] for value in hashes] == chain(root, tokens)
    heads, dim = meta["block_shape"][2:]
    assert meta["block_shape"][:2] == [2, BLOCK]
    assert meta["num_layers"] * 2 * BLOCK * heads * dim * 2 == document["block_bytes"]  # bf16
    assert meta["dtype"] == "torch.bfloat16"
    result = subprocess.run([THAW, "info", frozen, "--verify"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and "num_blocks" in result.stdout, result.stdout + result.stderr
    result = subprocess.run([THAW, "info", frozen, "--json"], capture_output=True, text=True, timeout=60)
    report = json.loads(result.stdout)
    assert report["tokens"] == len(tokens) and report["cache_root"] == root.hex()
    assert report["kv"]["num_blocks"] == len(blocks)


def test_a_server_with_it_prefills_nothing_of_the_prompt(serve, frozen):
    expected, _, _ = ask(serve(), PROMPT + "Tell me")
    server = serve("--kv-snapshot", str(frozen))
    text, prompt_tokens, cached = ask(server, PROMPT + "Tell me")
    assert text == expected
    assert cached >= 64 and cached % BLOCK == 0
    metrics = server.wait_idle()
    assert metrics["thaw_tokens_prefilled_total"] == prompt_tokens - cached
    assert metrics["thaw_tokens_restored_total"] == cached
    assert metrics["thaw_pinned_trunks"] == 1


def test_files_of_other_writers_are_served(serve, frozen, tmp_path):
    """One that knows the format only, with the first blocks and no sidecar."""
    _, _, regions = thaw_container.read(frozen)
    document = json.loads(regions[-1].payload)
    document["token_ids"] = document["token_ids"][: 4 * BLOCK]
    document["writer"] = "a test"
    regions[4:] = [thaw_container.Region("metadata", 0, json.dumps(document, indent=1).encode())]
    path = tmp_path / "other.thawkv"
    path.write_bytes(thaw_container.encode(regions, alignment=64, table_last=True))
    assert ask(serve("--kv-snapshot", str(path)), PROMPT)[2] == 4 * BLOCK


def test_its_owner_alone_has_it(serve, frozen, tmp_path, image_cache):
    keys = ("--api-key", "mine:one", "--api-key", "theirs:two")
    mine = freeze(tmp_path, "--kv-warmup-prompt", PROMPT, "--kv-tenant", "mine", env=image_cache)
    server = serve(*keys, "--kv-snapshot", f"{mine},{frozen}")
    assert ask(server, PROMPT, {"Authorization": "Bearer two"})[2] == 0
    assert ask(server, PROMPT, {"Authorization": "Bearer one"})[2] >= 64


def test_a_system_message_is_rendered_as_chats_render_it(serve, tmp_path, image_cache):
    prompt = tmp_path / "system.txt"
    prompt.write_text(PROMPT)
    kv = freeze(tmp_path, "--kv-warmup-prompt", f"@{prompt}", "--kv-warmup-system", env=image_cache)
    server = serve("--kv-snapshot", str(kv))
    messages = [{"role": "system", "content": PROMPT}, {"role": "user", "content": "Hello"}]
    status, answer = server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 4})
    assert status == 200
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] >= 64


def test_what_cannot_be_used_is_refused_at_the_start(frozen, tmp_path, image_cache):
    def refusal(kv, *flags, model=None) -> str:
        result = subprocess.run(
            [THAW, "serve", model or tiny_model(), "--port", "0", "--kv-bytes", "64MiB"]
            + ["--kv-snapshot", kv, "--log-level", "off", *flags],
            capture_output=True,
            text=True,
            timeout=120,
            env=image_cache,
        )
        assert result.returncode == 1, result.stdout
        line = result.stderr.splitlines()[-1]
        assert line.startswith("[thaw] ") and "serving" not in result.stdout
        return line

    assert "no such file" in refusal(tmp_path / "none.thawkv")
    assert "engine" in refusal(frozen, "--kv-dtype", "f32")
    assert "engine" in refusal(frozen, model=tiny_model("q8_0"))
    damaged = tmp_path / "damaged.thawkv"
    data = bytearray(frozen.read_bytes())
    _, _, regions = thaw_container.read(frozen)
    data[regions[1].offset + 5] ^= 1
    damaged.write_bytes(data)
    assert "checksum" in refusal(damaged)
    damaged.write_bytes(data[: len(data) // 2])
    assert str(damaged) in refusal(damaged)


def test_freeze_wants_prompt_and_output_together(tmp_path, image_cache):
    for flags in (["--kv-output", tmp_path / "kv.thawkv"], ["--kv-warmup-prompt", "text"]):
        result = subprocess.run(
            [THAW, "freeze", "--model", tiny_model(), "-o", tmp_path / "w.thaw", *flags],
            capture_output=True,
            text=True,
            timeout=60,
            env=image_cache,
        )
        assert result.returncode == 1 and "--kv-" in result.stderr
        assert not (tmp_path / "w.thaw").exists()


def wait_for_files(folder: pathlib.Path, count: int):
    deadline = time.monotonic() + 30
    while len(list(folder.glob("*.thawkv"))) < count:
        assert time.monotonic() < deadline, list(folder.iterdir())
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_restarted_server_goes_on_where_the_other_ended(serve, image_cache, tmp_path, how):
    folder = tmp_path / "spill"
    flags = ("--spill-dir", str(folder), *SPILL)
    expected, prompt_tokens, _ = ask(serve(), PROMPT)
    first = ThawServer(THAW, tiny_model(), flags, image_cache)
    first.wait_healthy()
    assert ask(first, PROMPT)[0] == expected
    if how == signal.SIGKILL:
        assert ask(first, PROMPT)[0] == expected  # what is used twice is written in between
        wait_for_files(folder, 1)
        pids = first.worker_pids()
        first.process.kill()
        first.process.wait()
        deadline = time.monotonic() + 10
        while any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    first.stop()
    assert os.stat(folder).st_mode & 0o777 == 0o700
    assert len(list(folder.glob("*.thawkv"))) == 1
    second = serve(*flags)
    text, _, cached = ask(second, PROMPT)
    assert text == expected
    assert cached >= prompt_tokens - BLOCK
    metrics = second.wait_idle()
    assert metrics["thaw_tokens_prefilled_total"] == prompt_tokens - cached
    assert metrics["thaw_tier_hits_total"] >= 2  # the file, then the arena


def test_a_damaged_spill_costs_a_prefill_and_nothing_else(serve, tmp_path):
    folder = tmp_path / "spill"
    flags = ("--spill-dir", str(folder), *SPILL)
    first = serve(*flags)
    expected, _, _ = ask(first, PROMPT)
    first.stop()
    (file,) = folder.glob("*.thawkv")
    _, _, regions = thaw_container.read(file)
    data = bytearray(file.read_bytes())
    data[regions[2].offset + 7] ^= 4
    file.write_bytes(data)
    second = serve(*flags)
    assert ask(second, PROMPT)[::2] == (expected, 0)
    deadline = time.monotonic() + 10
    while file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert any("damaged" in line for line in second.log)
