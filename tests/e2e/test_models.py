"""Every kind of model that can be named is served, and what cannot be says why in one line."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from conftest import BUILD, ROOT, real_model, tiny_model

THAW = BUILD / "bin" / "thaw"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
EXACT = ("--dtype", "f32", "--kv-dtype", "f32")
TEXTS = [
    "Hello, world!",
    " the river and the road",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. 1234567890",
    "def f(x):\n    return x**2  # naïve\n\n\n",
    "日本語のテキスト と emoji 🎉👩‍👩‍👧",
    "<|im_start|>user\nhi<|im_end|>\n",
    "\t\t  spaces   everywhere  \r\n",
]


def export(folder: pathlib.Path, *arguments: str) -> pathlib.Path:
    """A Hugging Face directory of a GGUF model."""
    command = [sys.executable, str(ROOT / "scripts" / "export_hf.py"), str(folder), *arguments]
    subprocess.run(command, check=True)
    return folder


def hub_entry(home: pathlib.Path, repository: str, folder: pathlib.Path) -> None:
    """Puts a directory into a Hugging Face cache as its programs would: links into blobs."""
    root = home / "hub" / ("models--" + repository.replace("/", "--"))
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    for file in folder.iterdir():
        file.rename(root / "blobs" / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")


def run(*arguments: str, home: pathlib.Path | None = None) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HOME": str(home or "/nonexistent")}
    environment.pop("HF_HUB_CACHE", None)
    return subprocess.run(
        [str(THAW), *arguments], capture_output=True, text=True, env=environment, timeout=60
    )


def info(model) -> dict:
    result = run("info", str(model), "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def model_entry(server) -> dict:
    return json.loads(server.get("/v1/models")[1])["data"][0]


def token_ids(server, text: str) -> list[int]:
    status, reply = server.post("/tokenize", {"prompt": text})
    assert status == 200, reply
    return reply["tokens"]


def greedy(server, max_tokens: int) -> list[tuple[str, dict[str, float]]]:
    """(token, best log-probabilities) of a greedy answer, from a chat and from a plain text."""
    found = []
    for prompt in ("The history of the river", "def reverse(items):\n"):
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "logprobs": 20}
        status, reply = server.post("/v1/completions", body | {"ignore_eos": True})
        assert status == 200, reply
        logprobs = reply["choices"][0]["logprobs"]
        found += zip(logprobs["tokens"], logprobs["top_logprobs"])
    return found


def largest_difference(ours, theirs) -> float:
    """Of the log-probabilities that both name; the tokens chosen must be the same."""
    assert [token for token, _ in ours] == [token for token, _ in theirs]
    differences = [
        abs(mine[token] - other[token])
        for (_, mine), (_, other) in zip(ours, theirs)
        for token in mine.keys() & other.keys()
    ]
    assert len(differences) > 10 * len(ours)
    return max(differences)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_directory_is_served_as_the_gguf_file_is(serve, tmp_path, shards):
    folder = export(tmp_path / "tiny-hf", str(tiny_model("f32")), "--shards", str(shards))
    ours = serve(*EXACT, model=folder)
    theirs = serve(*EXACT, model=tiny_model("f32"))
    entry = model_entry(ours)
    assert entry["id"] == "tiny-hf"
    assert (entry["family"], entry["dtype"], entry["quantization"]) == ("llama", "F32", None)
    assert entry["num_parameters"] == model_entry(theirs)["num_parameters"]
    for text in TEXTS:
        assert token_ids(ours, text) == token_ids(theirs, text)
    messages = {"messages": [{"role": "user", "content": "Hello <|im_end|>"}]}
    assert ours.post("/tokenize", messages) == theirs.post("/tokenize", messages)
    # The same numbers but for the order of rotary pairs, in which sums over a head's numbers are taken.
    assert largest_difference(greedy(ours, 24), greedy(theirs, 24)) < 1e-4


def test_a_model_is_found_by_name_in_the_cache(serve, tmp_path):
    hub_entry(tmp_path, "org/tiny", export(tmp_path / "made", str(tiny_model("f32")), "--dtype", "bfloat16"))
    environment = {**os.environ, "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_CACHE", None)
    server = serve(model="org/tiny", env=environment)
    assert model_entry(server)["id"] == "org/tiny"
    assert model_entry(server)["dtype"] == "BF16"
    status, reply = server.post("/v1/completions", {"prompt": "The river", "max_tokens": 4})
    assert status == 200 and reply["usage"]["completion_tokens"] == 4


def test_quantize_rounds_float_weights(serve, tmp_path):
    folder = export(tmp_path / "tiny", str(tiny_model("f32")), "--dtype", "bfloat16")
    server = serve("--quantize", "q8_0", model=folder)
    entry = model_entry(server)
    assert (entry["dtype"], entry["quantization"]) == ("BF16", "Q8_0")
    status, reply = server.post("/v1/completions", {"prompt": "The river", "max_tokens": 4})
    assert status == 200 and reply["usage"]["completion_tokens"] == 4
    # Rounding what is bfloat16 already changes nothing.
    stored, rounded, other = (
        serve(model=folder),
        serve("--dtype", "bf16", model=folder),
        serve("--dtype", "f16", model=folder),
    )
    assert greedy(rounded, 12) == greedy(stored, 12)
    assert largest_difference(greedy(other, 4), greedy(stored, 4)) < 0.02
    result = run("serve", str(folder), "--quantize", "q8_0", "--dtype", "f32")
    assert result.returncode == 1 and "--quantize q8_0 and --dtype f32" in result.stderr


def test_generation_config_sets_what_requests_leave_out(serve, tmp_path):
    folder = export(tmp_path / "tiny", str(tiny_model("f32")))
    generation = json.loads((folder / "generation_config.json").read_text())
    generation |= {"temperature": 0.6, "top_p": 0.9, "top_k": 1}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    body = {"prompt": "The river", "max_tokens": 8, "seed": 5}
    server = serve(model=folder)
    assert model_entry(server)["default_sampling_params"]["top_k"] == 1
    assert model_entry(server)["default_sampling_params"]["temperature"] == 0.6
    # With one candidate a seeded draw is the greedy one.
    _, default = server.post("/v1/completions", body)
    _, best = server.post("/v1/completions", body | {"temperature": 0})
    assert default["choices"][0]["text"] == best["choices"][0]["text"]
    plain = serve("--generation-config", "none", model=folder)
    assert model_entry(plain)["default_sampling_params"]["top_k"] == 0
    assert model_entry(plain)["default_sampling_params"]["temperature"] == 1.0


def test_chat_template_file_goes_before_the_one_in_json(serve, tmp_path):
    folder = export(tmp_path / "tiny", str(tiny_model("f32")))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    server = serve(model=folder)
    status, reply = server.post("/tokenize", {"messages": [{"role": "user", "content": "river"}]})
    assert status == 200
    assert reply["tokens"] == token_ids(server, "river")


TOOLS = [{"type": "function", "function": {"name": "river", "parameters": {"type": "object"}}}]


def chat_ids(server, tools=None) -> list[int]:
    body = {"messages": [{"role": "user", "content": "road"}]} | ({"tools": tools} if tools else {})
    status, reply = server.post("/tokenize", body)
    assert status == 200, reply
    return reply["tokens"]


def test_chat_template_flag_goes_before_the_models_own(serve, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}the {{ m.content }}{% endfor %}")
    server = serve("--chat-template", str(file))
    assert chat_ids(server) == token_ids(server, "the road")
    # It shows no tools, so they come as a system message.
    shown = server.post("/detokenize", {"tokens": chat_ids(server, TOOLS)})[1]["prompt"]
    assert shown.startswith("the ") and '"river"' in shown and shown.endswith("the road"), shown
    file.write_text("one\n{% for %}")
    for path, wanted in ((file, "mine.jinja: chat template, line 2"), (tmp_path / "no", "does not exist")):
        result = run(
            "serve", str(tiny_model()), "--port", "0", "--chat-template", str(path), "--log-level", "off"
        )
        assert result.returncode == 1 and wanted in result.stderr and result.stderr.count("\n") == 1


def test_requests_with_tools_have_a_template_of_their_own(serve, tmp_path):
    folder = export(tmp_path / "tiny", str(tiny_model("f32")))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = [
        {"name": "tool_use", "template": "{{ tools[0].function.name }}"},
        {"name": "default", "template": "{{ messages[0].content }}"},
    ]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    frozen = tmp_path / "tiny.thaw"
    result = run("freeze", "--model", str(folder), "--output", str(frozen))
    assert result.returncode == 0, result.stderr
    for model in (folder, frozen):
        server = serve(model=model)
        assert chat_ids(server) == token_ids(server, "road")
        assert chat_ids(server, TOOLS) == token_ids(server, "river")
    assert info(folder)["chat_template"]["tool_use_bytes"] == 28


def test_info_tells_the_same_of_both_containers(tmp_path):
    theirs = info(tiny_model("f32"))
    ours = info(export(tmp_path / "tiny", str(tiny_model("f32")), "--shards", "2"))
    assert ours["servable"] and theirs["servable"], (ours["problems"], theirs["problems"])
    assert (ours["container"], ours["files"], theirs["container"]) == ("safetensors", 2, "GGUF")
    for key in ("family", "parameters", "context_length", "layers", "heads", "kv_heads", "head_dim",
                "vocab_size", "kv_bytes_per_token", "end_tokens", "tied_embeddings", "rope"):  # fmt: skip
        assert ours[key] == theirs[key], key
    assert ours["chat_template"]["sha256_128"] == theirs["chat_template"]["sha256_128"]
    assert ours["tokenizer"]["pre_tokenizer"] == theirs["tokenizer"]["pre_tokenizer"]
    text = run("info", str(tiny_model("q4_1"))).stdout
    for word in ("tiny-q4_1", "llama", "Q4_1", "context", "tokenizer", "servable    yes"):
        assert word in text


def test_info_lists_everything_that_is_not_supported(tmp_path):
    folder = export(tmp_path / "tiny", str(tiny_model("f32")))
    config = json.loads((folder / "config.json").read_text())
    config |= {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text("{% for %}")
    (folder / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    report = info(folder)
    assert not report["servable"]
    problems = "\n".join(report["problems"])
    assert "dynamic" in problems and "chat_template.jinja" in problems and "Unigram" in problems
    assert report["weights"][0]["dtype"] == "F32"
    assert "no:" in run("info", str(folder)).stdout


def damaged(folder: pathlib.Path, case: str) -> str:
    """A model with one thing wrong; what the error must name."""
    folder = export(folder, str(tiny_model("f32")), "--shards", "2")
    shard = folder / "model-00002-of-00002.safetensors"
    if case == "shard missing":
        shard.unlink()
        return "model-00002-of-00002.safetensors is missing"
    if case == "shard cut":
        shard.write_bytes(shard.read_bytes()[:-100])
        return "model-00002-of-00002.safetensors: tensor"
    if case == "config missing":
        (folder / "config.json").unlink()
        return "config.json is missing"
    if case == "config broken":
        (folder / "config.json").write_text("{")
        return "config.json"
    if case == "architecture":
        (folder / "config.json").write_text('{"architectures": ["GPTBigCodeForCausalLM"]}')
        return "GPTBigCodeForCausalLM"
    if case == "tokenizer missing":
        (folder / "tokenizer.json").unlink()
        return "tokenizer.json is missing"
    if case == "template broken":
        (folder / "chat_template.jinja").write_text("{% for %}")
        return "chat_template.jinja"
    if case == "pickled":
        for file in folder.glob("model*"):
            file.unlink()
        (folder / "pytorch_model.bin").write_bytes(b"")
        return "pytorch_model.bin"
    raise AssertionError(case)


@pytest.mark.parametrize(
    "case",
    ["shard missing", "shard cut", "config missing", "config broken", "architecture", "tokenizer missing",
     "template broken", "pickled"],
)  # fmt: skip
def test_a_damaged_directory_is_one_line(tmp_path, case):
    wanted = damaged(tmp_path / "model", case)
    result = run("serve", str(tmp_path / "model"), "--port", "0", "--log-level", "off")
    assert result.returncode == 1
    assert wanted in result.stderr
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("thaw: ")


def test_a_model_that_is_not_there_is_one_line(tmp_path):
    result = run("serve", "org/model", home=tmp_path)
    assert result.returncode == 1 and "`hf download org/model`" in result.stderr
    assert str(tmp_path / "hub") in result.stderr and result.stderr.count("\n") == 1
    result = run("info", "org/model@v1", home=tmp_path)
    assert result.returncode == 1 and "`hf download org/model --revision v1`" in result.stderr
    result = run("serve", str(tmp_path), home=tmp_path)
    assert result.returncode == 1 and "no model in this directory" in result.stderr


def test_the_default_model_from_a_directory(serve, tmp_path):
    """Exported once more as float32: the same tokens, and the same logits but for the order of sums."""
    folder = export(tmp_path / "SmolLM2", str(real_model()))
    ours = serve(*EXACT, model=folder)
    theirs = serve(*EXACT, model=real_model())
    text = (ROOT / "tests" / "data" / "logits_text.txt").read_text()
    for piece in [*TEXTS, text]:
        assert token_ids(ours, piece) == token_ids(theirs, piece)
    difference = largest_difference(greedy(ours, 16), greedy(theirs, 16))
    print(f"largest difference of log-probabilities: {difference}")
    assert difference < 1e-3
