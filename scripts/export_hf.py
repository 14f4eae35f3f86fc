#!/usr/bin/env python3
"""Writes a GGUF model as a Hugging Face directory, so that one model can be served from both.

safetensors of the dequantised weights with Q and K in transformers' order of rotary pairs, config.json,
generation_config.json, and tokenizer.json and tokenizer_config.json made of the file's vocabulary.
For the llama architecture with a byte-level BPE tokenizer; the default model without an argument.
Needs numpy. Block layouts: the GGUF specification and ggml's type definitions.
"""

import argparse
import json
import mmap
import os
import pathlib
import struct
import sys

import numpy as np

SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
STRING, ARRAY = 8, 9
CONTROL = 3  # in tokenizer.ggml.token_type
# What well-known chat formats end a turn or a text with; many files name only one of theirs.
ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<end_of_turn>",
)

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def fail(message: str):
    sys.exit(f"export_hf: {message}")


class Gguf:
    """Metadata and tensors of a GGUF file; what is wrong with it ends the script."""

    def __init__(self, path: pathlib.Path):
        with path.open("rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.at = 0
        if self.take("<4s") != b"GGUF" or self.take("<I") not in (2, 3):
            fail(f"{path} is not a GGUF file of version 2 or 3")
        num_tensors, num_values = self.take("<Q"), self.take("<Q")
        self.values = {}
        for _ in range(num_values):
            key = self.string()
            self.values[key] = self.value(self.take("<I"))
        infos = []
        for _ in range(num_tensors):
            name = self.string()
            shape = [self.take("<Q") for _ in range(self.take("<I"))]
            infos.append((name, shape[::-1], self.take("<I"), self.take("<Q")))
        alignment = self.values.get("general.alignment", 32)
        start = -(-self.at // alignment) * alignment
        self.tensors = {name: (shape, kind, start + offset) for name, shape, kind, offset in infos}

    def take(self, form: str):
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def string(self) -> str:
        size = self.take("<Q")
        self.at += size
        return self.data[self.at - size : self.at].decode()

    def value(self, kind: int):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            element, count = self.take("<I"), self.take("<Q")
            return [self.value(element) for _ in range(count)]
        return self.take(SCALARS[kind])

    def tensor(self, name: str) -> np.ndarray:
        """The dequantised values, float32, outermost dimension first."""
        shape, kind, start = self.tensors[name]
        if kind not in EXPANDERS:
            fail(f"tensor {name} has type {kind}; exported are F32, F16, BF16, Q4_0, Q4_1 and Q8_0")
        elements, block_bytes, expand = EXPANDERS[kind]
        blocks = int(np.prod(shape)) // elements
        stored = np.frombuffer(self.data, np.uint8, blocks * block_bytes, start)
        return expand(stored.reshape(blocks, block_bytes)).reshape(shape)


def half(stored: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(stored).view("<f2").astype(np.float32)


def nibbles(stored: np.ndarray) -> np.ndarray:
    return np.concatenate([stored & 15, stored >> 4], axis=1).astype(np.float32)


def widen_bf16(stored: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(stored).view("<u2").astype("<u4") << 16).view(np.float32)


# GGUF type -> elements and bytes of a block, and the function that expands [blocks, bytes].
EXPANDERS = {
    0: (1, 4, lambda s: np.ascontiguousarray(s).view("<f4")),
    1: (1, 2, half),
    30: (1, 2, widen_bf16),
    2: (32, 18, lambda s: half(s[:, :2]) * (nibbles(s[:, 2:]) - 8)),
    3: (32, 20, lambda s: half(s[:, :2]) * nibbles(s[:, 4:]) + half(s[:, 2:4])),
    8: (32, 34, lambda s: half(s[:, :2]) * s[:, 2:].view(np.int8).astype(np.float32)),
}


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF keeps the two numbers of a rotary pair side by side, transformers half a head apart."""
    rows, cols = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def hf_tensor(file: Gguf, name: str) -> tuple[str, np.ndarray]:
    weight = file.tensor(name)
    parts = name.removesuffix(".weight").split(".")
    if parts[0] == "blk" and len(parts) == 3 and parts[2] in LAYER_NAMES:
        for part, key in (("attn_q", "head_count"), ("attn_k", "head_count_kv")):
            if parts[2] == part:
                weight = unpermute(weight, file.values[f"llama.attention.{key}"])
        return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.weight", weight
    if parts[0] in OTHER_NAMES:
        return OTHER_NAMES[parts[0]] + ".weight", weight
    fail(f"tensor {name} has no place in a Llama model")


def round_bf16(values: np.ndarray) -> np.ndarray:
    """To the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values, "<f4").view("<u4")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def write_safetensors(path: pathlib.Path, file: Gguf, names: list[str], dtype: str) -> list[str]:
    """Writes one file tensor by tensor; gives the names in it."""
    size = 4 if dtype == "float32" else 2
    header, end, weights = {"__metadata__": {"format": "pt"}}, 0, []
    for name in names:
        hf_name, weight = hf_tensor(file, name)
        header[hf_name] = {
            "dtype": "F32" if size == 4 else "BF16",
            "shape": list(weight.shape),
            "data_offsets": [end, end + weight.size * size],
        }
        end += weight.size * size
        weights.append(name)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as sink:
        sink.write(struct.pack("<Q", len(text)) + text)
        for name in weights:
            weight = hf_tensor(file, name)[1]
            sink.write((np.ascontiguousarray(weight, "<f4") if size == 4 else round_bf16(weight)).tobytes())
    return [name for name in header if name != "__metadata__"]


def write_weights(folder: pathlib.Path, file: Gguf, dtype: str, shards: int) -> None:
    names = list(file.tensors)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", file, names, dtype)
        return
    weight_map = {}
    for number in range(shards):
        shard = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        weight_map |= dict.fromkeys(write_safetensors(folder / shard, file, part, dtype), shard)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def write_json(path: pathlib.Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def config(file: Gguf, dtype: str, ends: list[int]) -> dict:
    def value(key: str, default=None):
        return file.values.get(f"llama.{key}", default)

    heads = value("attention.head_count")
    hidden = value("embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": file.tensors["token_embd.weight"][0][0],
        "hidden_size": hidden,
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv", heads),
        "head_dim": value("attention.key_length", hidden // heads),
        "max_position_embeddings": value("context_length"),
        # As people write it: the f32 of 1e-5, not its double.
        "rms_norm_eps": float(
            np.format_float_scientific(np.float32(value("attention.layer_norm_rms_epsilon")))
        ),
        "rope_theta": value("rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": file.values.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.values.get("tokenizer.ggml.eos_token_id", ends[0] if ends else None),
        "torch_dtype": dtype,
    }


def pre_tokenizer(name: str) -> dict:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    if name == "gpt-2":
        return byte_level
    if name == "smollm":
        digits = {"type": "Digits", "individual_digits": True}
        return {"type": "Sequence", "pretokenizers": [digits, byte_level]}
    fail(f"pre-tokenizer {name} is not exported; smollm and gpt-2 are")


def tokenizer(file: Gguf) -> dict:
    tokens = file.values["tokenizer.ggml.tokens"]
    kinds = file.values.get("tokenizer.ggml.token_type", [1] * len(tokens))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **flags}
            for i, (token, kind) in enumerate(zip(tokens, kinds))
            if kind == CONTROL
        ],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer(file.values.get("tokenizer.ggml.pre", "gpt-2")),
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in file.values["tokenizer.ggml.merges"]],
        },
    }


def tokenizer_config(file: Gguf) -> dict:
    tokens = file.values["tokenizer.ggml.tokens"]
    out = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": file.values["llama.context_length"],
    }
    for key, name in (("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token")):
        token = file.values.get(f"tokenizer.ggml.{key}_token_id")
        if token is not None:
            out[name] = tokens[token]
    if "tokenizer.chat_template" in file.values:
        out["chat_template"] = file.values["tokenizer.chat_template"]
    return out


def end_tokens(file: Gguf) -> list[int]:
    tokens = file.values["tokenizer.ggml.tokens"]
    ends = {i for i, token in enumerate(tokens) if token in ENDS}
    return sorted(ends | {file.values.get("tokenizer.ggml.eos_token_id", -1)} - {-1})


def default_model() -> pathlib.Path:
    cache = os.environ.get("THAW_CACHE_DIR") or pathlib.Path.home() / ".cache" / "thaw"
    return pathlib.Path(cache) / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=pathlib.Path, help="directory to write")
    parser.add_argument("model", type=pathlib.Path, nargs="?", help="GGUF file (the default model)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--shards", type=int, default=1, help="safetensors files to write")
    args = parser.parse_args()
    model = args.model or default_model()
    if not model.exists():
        fail(f"{model} does not exist; `make model` fetches the default model")
    file = Gguf(model)
    if (
        file.values.get("general.architecture") != "llama"
        or file.values.get("tokenizer.ggml.model") != "gpt2"
    ):
        fail(f"{model} is not of the llama architecture with a byte-level BPE tokenizer")
    ends = end_tokens(file)
    args.output.mkdir(parents=True, exist_ok=True)
    write_weights(args.output, file, args.dtype, max(1, args.shards))
    write_json(args.output / "tokenizer.json", tokenizer(file))
    write_json(args.output / "tokenizer_config.json", tokenizer_config(file))
    bos = file.values.get("tokenizer.ggml.bos_token_id")
    write_json(args.output / "generation_config.json", {"bos_token_id": bos, "eos_token_id": ends})
    # Last: a directory without it is not a model yet.
    write_json(args.output / "config.json", config(file, args.dtype, ends))


if __name__ == "__main__":
    main()
