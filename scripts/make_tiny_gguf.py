#!/usr/bin/env python3
"""Writes a tiny random model as a GGUF file: about 1 MB, standard library only.

Byte-level BPE with a few merges, SmolLM2's special tokens and the shape of its chat template, a
context of 8,192 tokens. The same seed gives the same bytes. `--dtype mixed` and `--dtype mixed-k` use
every tensor type that thaw reads in two files; beside a type with blocks of 256 the shorter rows have
one with blocks of 32. `--family` gives the tensors and keys of another family than Llama. Weights are
scaled so that greedy output varies and rarely ends by itself.
"""

import argparse
import math
import os
import pathlib
import random
import re
import struct

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, CONTEXT = 3, 64, 4, 2, 16, 256, 8192
FAMILY_LAYERS = {"smollm3": 4}  # the fourth has no RoPE
FAMILY_HEAD_DIM = {"qwen3": 32}  # more than the hidden size over the heads
VOCAB = 520  # not a multiple of 16, so that padded rows are exercised
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
END_OF_TEXT, START_OF_TURN, END_OF_TURN = 0, 1, 2
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a tiny model.<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# What the merges are learned from.
PROSE = """
A branch of a river does not begin again at the spring. It takes the water that the trunk has carried
so far and goes on from there, and what it becomes depends on the valley that it finds. The same holds
for a thought: four readers of one long text need not read it four times, if each may start where the
reading ended and follow a question of its own. One looks for the fault that lets a stranger in, one
for the loop that runs too often, one for the name that tells a lie, one for the case that nobody
wrote down. When they are done they lay their notes side by side, and the text has been read once.
Snow keeps the shape of the field beneath it. When it thaws, the furrows are where they were, and the
stream that runs through them finds its old bed. So it is with state that is kept and not made anew:
it must be the same to the last bit, or the stream will find another way.
"""


def byte_alphabet() -> list[str]:
    """GPT-2's printable character for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(256 + len(table) - len(printable))
    return [table[byte] for byte in range(256)]


def learn_merges(alphabet: list[str], count: int) -> tuple[list[str], list[str]]:
    """(new tokens, merges) of byte-pair encoding on PROSE; words never join with punctuation."""
    words = [[alphabet[b] for b in word.encode()] for word in re.findall(r" ?[A-Za-z]+", PROSE)]
    tokens: list[str] = []
    merges: list[str] = []
    while len(tokens) < count:
        pairs: dict[tuple[str, str], int] = {}
        for word in words:
            for pair in zip(word, word[1:]):
                pairs[pair] = pairs.get(pair, 0) + 1
        left, right = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(f"{left} {right}")
        if left + right not in tokens:
            tokens.append(left + right)
        for word in words:
            i = 0
            while i + 1 < len(word):
                if word[i] == left and word[i + 1] == right:
                    word[i : i + 2] = [left + right]
                i += 1
    return tokens, merges


# What the nibbles of IQ4_NL mean, in units of the scale.
IQ4_VALUES = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]


# --- Tensor types: each encodes a list of floats whose length fits its blocks. ---


def f16(value: float) -> bytes:
    return struct.pack("<e", value)


def read_f16(data: bytes) -> float:
    return struct.unpack("<e", data)[0]


def clamp(value: float, low: int, high: int) -> int:
    return max(low, min(high, round(value)))


def nibble_bytes(quants: list[int]) -> bytes:
    """The first half in the low nibbles, the second in the high ones."""
    half = len(quants) // 2
    return bytes(low | high << 4 for low, high in zip(quants[:half], quants[half:]))


def encode_f32(x: list[float]) -> bytes:
    return struct.pack(f"<{len(x)}f", *x)


def encode_f16(x: list[float]) -> bytes:
    return struct.pack(f"<{len(x)}e", *x)


def encode_bf16(x: list[float]) -> bytes:
    bits = struct.unpack(f"<{len(x)}I", encode_f32(x))
    return struct.pack(f"<{len(x)}H", *((b + 0x7FFF + (b >> 16 & 1)) >> 16 for b in bits))


def block_q8_0(x: list[float]) -> bytes:
    scale = f16(max(map(abs, x)) / 127)
    step = read_f16(scale) or 1.0
    return scale + bytes(clamp(v / step, -127, 127) & 255 for v in x)


def block_q4_0(x: list[float]) -> bytes:
    scale = f16(max(map(abs, x)) / 8)
    step = read_f16(scale) or 1.0
    return scale + nibble_bytes([clamp(v / step + 8, 0, 15) for v in x])


def block_q4_1(x: list[float]) -> bytes:
    scale, minimum = f16((max(x) - min(x)) / 15), f16(min(x))
    step = read_f16(scale) or 1.0
    return scale + minimum + nibble_bytes([clamp((v - read_f16(minimum)) / step, 0, 15) for v in x])


def block_q5_0(x: list[float]) -> bytes:
    scale = f16(max(map(abs, x)) / 16)
    step = read_f16(scale) or 1.0
    return scale + fivebit_bytes([clamp(v / step + 16, 0, 31) for v in x])


def block_q5_1(x: list[float]) -> bytes:
    scale, minimum = f16((max(x) - min(x)) / 31), f16(min(x))
    step = read_f16(scale) or 1.0
    return scale + minimum + fivebit_bytes([clamp((v - read_f16(minimum)) / step, 0, 31) for v in x])


def fivebit_bytes(quants: list[int]) -> bytes:
    """The high bits as an integer, then the nibbles."""
    high = sum((q >> 4) << i for i, q in enumerate(quants))
    return struct.pack("<I", high) + nibble_bytes([q & 15 for q in quants])


def block_iq4_nl(x: list[float]) -> bytes:
    scale = f16(max(map(abs, x)) / 127)
    step = read_f16(scale) or 1.0
    nearest = [min(range(16), key=lambda i: abs(IQ4_VALUES[i] - v / step)) for v in x]
    return scale + nibble_bytes(nearest)


def two_levels(x: list[float], size: int, most_quant: int, most_small: int):
    """(d, dmin, scales, minima, quants) of sub-blocks whose scales are integers up to most_small."""
    subs = [x[i : i + size] for i in range(0, 256, size)]
    minima = [max(0.0, -min(sub)) for sub in subs]
    ranges = [(max(sub) + low) / most_quant for sub, low in zip(subs, minima)]
    d, dmin = f16(max(ranges) / most_small), f16(max(minima) / most_small)
    step, low_step = read_f16(d) or 1.0, read_f16(dmin) or 1.0
    scales = [clamp(r / step, 0, most_small) for r in ranges]
    mins = [clamp(m / low_step, 0, most_small) for m in minima]
    quants = [
        [clamp((v + low_step * m) / (step * s or 1.0), 0, most_quant) for v in sub]
        for sub, s, m in zip(subs, scales, mins)
    ]
    return d, dmin, scales, mins, quants


def sixbit_scales(scales: list[int], mins: list[int]) -> bytes:
    packed = bytearray(12)
    for j in range(4):
        packed[j] = scales[j] | (scales[j + 4] >> 4) << 6
        packed[j + 4] = mins[j] | (mins[j + 4] >> 4) << 6
        packed[j + 8] = scales[j + 4] & 15 | (mins[j + 4] & 15) << 4
    return bytes(packed)


def paired_nibbles(quants: list[list[int]]) -> bytes:
    """Sub-blocks of 32: an even one in the low nibbles, the odd one after it in the high ones."""
    return b"".join(nibble_bytes(low + high) for low, high in zip(quants[0::2], quants[1::2]))


def block_q4_k(x: list[float]) -> bytes:
    d, dmin, scales, mins, quants = two_levels(x, 32, 15, 63)
    return d + dmin + sixbit_scales(scales, mins) + paired_nibbles(quants)


def block_q5_k(x: list[float]) -> bytes:
    d, dmin, scales, mins, quants = two_levels(x, 32, 31, 63)
    high = bytes(sum((sub[i] >> 4) << s for s, sub in enumerate(quants)) for i in range(32))
    low = [[q & 15 for q in sub] for sub in quants]
    return d + dmin + sixbit_scales(scales, mins) + high + paired_nibbles(low)


def crumb_bytes(quants: list[int]) -> bytes:
    """Two low bits of 256 quants: byte i of each half of 128 holds i, i + 32, i + 64 and i + 96."""
    return bytes(
        sum((quants[half + i + 32 * k] & 3) << 2 * k for k in range(4))
        for half in (0, 128)
        for i in range(32)
    )


def block_q2_k(x: list[float]) -> bytes:
    d, dmin, scales, mins, quants = two_levels(x, 16, 3, 15)
    small = bytes(s | m << 4 for s, m in zip(scales, mins))
    return small + crumb_bytes(sum(quants, [])) + d + dmin


def block_q3_k(x: list[float]) -> bytes:
    wanted = [max(map(abs, x[i : i + 16])) / 4 for i in range(0, 256, 16)]
    d = f16(max(wanted) / 31)
    step = read_f16(d) or 1.0
    scales = [clamp(w / step, 1, 31) for w in wanted]
    quants = [clamp(x[i] / (step * scales[i // 16]) + 4, 0, 7) for i in range(256)]
    high = bytes(sum((quants[32 * s + i] >> 2) << s for s in range(8)) for i in range(32))
    stored = [s + 32 for s in scales]
    small = nibble_bytes([s & 15 for s in stored])
    small += bytes(sum((stored[i + 4 * k] >> 4) << 2 * k for k in range(4)) for i in range(4))
    return high + crumb_bytes(quants) + small + d


def block_q6_k(x: list[float]) -> bytes:
    subs = [x[i : i + 16] for i in range(0, 256, 16)]
    wanted = [max(map(abs, sub)) / 31 for sub in subs]
    d = f16(max(wanted) / 127)
    step = read_f16(d) or 1.0
    scales = [clamp(w / step, 1, 127) for w in wanted]
    quants = [clamp(x[i] / (step * scales[i // 16]) + 32, 0, 63) for i in range(256)]
    low, high = b"", b""
    for half in (quants[:128], quants[128:]):
        low += nibble_bytes([q & 15 for q in half])
        high += bytes(sum((half[i + 32 * k] >> 4) << 2 * k for k in range(4)) for i in range(32))
    return low + high + bytes(scales) + d


def blocks(size: int, encode):
    return lambda x: b"".join(encode(x[i : i + size]) for i in range(0, len(x), size))


# name -> (GGUF type id, encoder)
TYPES = {
    "f32": (0, encode_f32),
    "f16": (1, encode_f16),
    "bf16": (30, encode_bf16),
    "q8_0": (8, blocks(32, block_q8_0)),
    "q4_0": (2, blocks(32, block_q4_0)),
    "q4_1": (3, blocks(32, block_q4_1)),
    "q4_k": (12, blocks(256, block_q4_k)),
    "q6_k": (14, blocks(256, block_q6_k)),
    "q5_0": (6, blocks(32, block_q5_0)),
    "q5_1": (7, blocks(32, block_q5_1)),
    "q5_k": (13, blocks(256, block_q5_k)),
    "q2_k": (10, blocks(256, block_q2_k)),
    "q3_k": (11, blocks(256, block_q3_k)),
    "iq4_nl": (20, blocks(32, block_iq4_nl)),
}
MIXED = {
    "mixed": {
        "attn_q": ["q4_0"],  # by layer, over and over
        "attn_k": ["q4_1"],
        "attn_v": ["f16"],
        "attn_output": ["q8_0"],
        "ffn_gate": ["bf16", "q4_1", "q4_0"],
        "ffn_up": ["q4_1", "q8_0", "f32"],
        "ffn_down": ["q4_k", "q6_k", "f16"],  # the only rows of 256
    },
    "mixed-k": {
        "attn_q": ["q5_0"],
        "attn_k": ["q5_1"],
        "attn_v": ["iq4_nl"],
        "attn_output": ["q5_1", "iq4_nl", "q5_0"],
        "ffn_gate": ["iq4_nl", "q5_0", "q5_1"],
        "ffn_up": ["q5_0", "q5_1", "iq4_nl"],
        "ffn_down": ["q5_k", "q2_k", "q3_k"],
    },
}
# Stands in for the types of 256 where rows are shorter.
NARROW = {"q2_k": "iq4_nl", "q3_k": "iq4_nl", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}


def type_of(name: str, dtype: str) -> str:
    """Embedding and head are Q8_0 in quantised files, as in the default model."""
    if dtype in ("f32", "f16", "bf16"):
        return dtype
    if name in ("token_embd", "output"):
        return "q8_0"
    if dtype in MIXED:
        _, layer, kind = name.split(".")
        return MIXED[dtype][kind][int(layer) % len(MIXED[dtype][kind])]
    return NARROW.get(dtype, dtype) if "ffn_down" not in name else dtype


def make_tensors(
    rng: random.Random,
    tokens: list[str],
    family: str,
    dtype: str,
    head_dim: int,
    untied: bool,
    rope_freqs: bool,
):
    """[(name, shape with the inputs first, type id, bytes)]"""
    tensors = []

    def matrix(name: str, rows: int, cols: int, scale: float, row_scale=lambda row: 1.0) -> None:
        kind = type_of(name, dtype)
        values = [rng.gauss(0, scale * row_scale(r)) for r in range(rows) for _ in range(cols)]
        tensors.append((name + ".weight", [cols, rows], TYPES[kind][0], TYPES[kind][1](values)))

    def vector(name: str, values: list[float]) -> None:
        tensors.append((name, [len(values)], 0, encode_f32(values)))

    def liking(token: int) -> float:
        """Specials, control characters and stray bytes are seldom the likeliest token."""
        text = tokens[token]
        return 0.3 if token < len(SPECIAL) or len(text) == 1 and not " " < text < "\x7f" else 1.0

    matrix("token_embd", VOCAB, HIDDEN, 1.0, liking)
    for i in range(FAMILY_LAYERS.get(family, LAYERS)):
        name = f"blk.{i}."
        vector(name + "attn_norm.weight", [rng.uniform(0.8, 1.2) for _ in range(HIDDEN)])
        matrix(name + "attn_q", HEADS * head_dim, HIDDEN, 1.6 / math.sqrt(HIDDEN))
        matrix(name + "attn_k", KV_HEADS * head_dim, HIDDEN, 1.6 / math.sqrt(HIDDEN))
        matrix(name + "attn_v", KV_HEADS * head_dim, HIDDEN, 2.0 / math.sqrt(HIDDEN))
        matrix(name + "attn_output", HIDDEN, HEADS * head_dim, 2.0 / math.sqrt(HIDDEN))
        if family == "qwen2":
            for part, heads in (("attn_q", HEADS), ("attn_k", KV_HEADS), ("attn_v", KV_HEADS)):
                vector(f"{name}{part}.bias", [rng.gauss(0, 0.5) for _ in range(heads * head_dim)])
        if family == "qwen3":
            for part in ("attn_q_norm", "attn_k_norm"):
                vector(f"{name}{part}.weight", [rng.uniform(1.0, 1.8) for _ in range(head_dim)])
        vector(name + "ffn_norm.weight", [rng.uniform(0.8, 1.2) for _ in range(HIDDEN)])
        matrix(name + "ffn_gate", FFN, HIDDEN, 1.5 / math.sqrt(HIDDEN))
        matrix(name + "ffn_up", FFN, HIDDEN, 1.5 / math.sqrt(HIDDEN))
        matrix(name + "ffn_down", HIDDEN, FFN, 3.0 / math.sqrt(FFN))
    vector("output_norm.weight", [rng.uniform(0.3, 0.5) for _ in range(HIDDEN)])
    if untied:
        matrix("output", VOCAB, HIDDEN, 1.0, liking)
    if rope_freqs:
        vector("rope_freqs.weight", [1.0 + i for i in range(head_dim // 2)])
    return tensors


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def value(item) -> bytes:
    """A metadata value with its type: str, bool, int (u32), float (f32) or a list of str, float or int."""
    if isinstance(item, str):
        return struct.pack("<I", 8) + string(item)
    if isinstance(item, bool):
        return struct.pack("<IB", 7, item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item[0], str):
        return struct.pack("<IIQ", 9, 8, len(item)) + b"".join(map(string, item))
    if isinstance(item[0], float):
        return struct.pack("<IIQ", 9, 6, len(item)) + struct.pack(f"<{len(item)}f", *item)
    return struct.pack("<IIQ", 9, 5, len(item)) + struct.pack(f"<{len(item)}i", *item)


def make_file(family: str, dtype: str, seed: int, untied: bool, rope_freqs: bool, head_dim: int = 0) -> bytes:
    head_dim = head_dim or FAMILY_HEAD_DIM.get(family, HEAD_DIM)
    alphabet = byte_alphabet()
    learned, merges = learn_merges(alphabet, VOCAB - len(SPECIAL) - 256)
    tokens = SPECIAL + alphabet + learned
    metadata = {
        "general.architecture": family,
        "general.name": f"tiny-{dtype}",
        f"{family}.block_count": FAMILY_LAYERS.get(family, LAYERS),
        f"{family}.context_length": CONTEXT,
        f"{family}.embedding_length": HIDDEN,
        f"{family}.feed_forward_length": FFN,
        f"{family}.attention.head_count": HEADS,
        f"{family}.attention.head_count_kv": KV_HEADS,
        f"{family}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{family}.rope.dimension_count": head_dim,
        f"{family}.rope.freq_base": 100000.0,
        f"{family}.vocab_size": VOCAB,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (VOCAB - len(SPECIAL)),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": START_OF_TURN,
        "tokenizer.ggml.eos_token_id": END_OF_TURN,
        "tokenizer.ggml.unknown_token_id": END_OF_TEXT,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }
    if head_dim != HEAD_DIM:
        metadata[f"{family}.attention.key_length"] = head_dim
        metadata[f"{family}.attention.value_length"] = head_dim
    rng = random.Random(seed)
    tensors = make_tensors(rng, tokens, family, dtype, head_dim, untied, rope_freqs)
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    header += b"".join(string(key) + value(item) for key, item in metadata.items())
    data = b""
    for name, shape, kind, stored in tensors:
        header += string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        header += struct.pack("<IQ", kind, len(data))
        data += stored + bytes(-len(stored) % 32)
    return header + bytes(-len(header) % 32) + data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--family", choices=["llama", "qwen2", "qwen3", "smollm3"], default="llama")
    parser.add_argument("--dtype", choices=[*TYPES, *MIXED], default="q4_1",
                        help="type of the matrices (default q4_1)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--untied", action="store_true", help="a head of its own")
    parser.add_argument("--rope-freqs", action="store_true", help="with RoPE frequency factors")
    parser.add_argument("--head-dim", type=int, default=0,
                        help="dimensions of a head; the CUDA kernels have 64 and 128")  # fmt: skip
    args = parser.parse_args()
    content = make_file(args.family, args.dtype, args.seed, args.untied, args.rope_freqs, args.head_dim)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = args.output.with_name(f"{args.output.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(args.output)


if __name__ == "__main__":
    main()
