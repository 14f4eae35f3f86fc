"""Handle directories and rollouts, written and read from their description alone (kvsnap/FORMAT.md):
shares nothing with the C++ that the tests compare it with."""

import base64
import hashlib
import json
import pathlib
import struct

import thaw_container
from thaw_container import Region

MAGIC = b"THAWKV\0\0"
# Of one layer's block: K and V, tokens, heads, head size; float16.
SHAPE = [2, 4, 1, 2]
LAYERS = 2
BLOCK_TOKENS = SHAPE[1]
BLOCK_BYTES = 2 * 4 * 1 * 2 * 2


def block_hashes(tokens: list[int]) -> list[str]:
    """Chained names of whole blocks: 32 bytes of hash, 4 of a group id."""
    names, parent = [], b"root"
    for start in range(0, len(tokens) // BLOCK_TOKENS * BLOCK_TOKENS, BLOCK_TOKENS):
        block = struct.pack(f"<{BLOCK_TOKENS}I", *tokens[start : start + BLOCK_TOKENS])
        parent = hashlib.sha256(parent + block).digest()
        names.append(base64.b64encode(parent + struct.pack(">I", 0)).decode())
    return names


def block_payload(name: str, layer: int) -> bytes:
    """K, then V, of a block in a layer: anything that depends on both."""
    return (hashlib.sha256(f"{name}{layer}".encode()).digest() * 2)[:BLOCK_BYTES]


def describe(tokens: list[int], layout: str | None = "coalesced", first_id: int = 5) -> dict:
    """The description of the blocks of some tokens. Pools hold blocks in any order: so does it."""
    names = block_hashes(tokens)[::-1]
    description = {
        "num_blocks": len(names),
        "block_ids": [first_id + 3 * i for i in range(len(names))],
        "block_hashes": names,
        "num_layers": LAYERS,
        "block_shape": SHAPE,
        "block_bytes": BLOCK_BYTES,
        "dtype": "torch.float16",
        "block_size": BLOCK_TOKENS,
    }
    if layout is not None:
        description |= {
            "slab_nbytes": BLOCK_BYTES // 2,
            "num_slots": len(names),
            "layout": layout,
            "coalesced_bytes": LAYERS * len(names) * BLOCK_BYTES,
        }
    return description


def sidecar(description: dict) -> bytes:
    text = json.dumps(description).encode()
    return MAGIC + struct.pack("<I", len(text)) + text


def payload_regions(description: dict) -> list[Region]:
    """In one region, layer by layer; or each K and V of each block and layer in one of its own."""
    slabs = []
    for layer in range(description["num_layers"]):
        for name in description["block_hashes"]:
            block = block_payload(name, layer)
            slabs += [block[: BLOCK_BYTES // 2], block[BLOCK_BYTES // 2 :]]
    if description.get("layout") == "coalesced":
        return [Region("kv_live_block", 0, b"".join(slabs))]
    return [Region("kv_live_block", i, slab) for i, slab in enumerate(slabs)]


def manifest(folder: str, description: dict, **fields) -> dict:
    """handle.json, with the paths of the machine that wrote it."""
    return {
        "model_id": "org/tiny",
        "state_dir": f"/elsewhere/{folder}",
        "kv_path": f"/elsewhere/{folder}/kv.thawkv",
        "weights_path": None,
        "prefix_tokens": description["num_blocks"] * BLOCK_TOKENS,
        "block_shape": description.get("block_shape", []),
        "num_layers": description.get("num_layers", 0),
        "max_block_id": max(description.get("block_ids", []), default=-1),
        "num_kv_blocks": description["num_blocks"],
        "handle_id": hashlib.sha256(folder.encode()).hexdigest()[:32],
        "parent_id": None,
        "label": None,
        "prefix_token_ids": None,
        "prefix_preview": None,
        "tensor_parallel_size": 1,
        "vllm_version": "0.19.0",
        "created_at": 1781234567.25,
        "version": 1,
    } | fields


def dump_manifest(fields: dict) -> bytes:
    return json.dumps(fields, indent=2).encode()


def handle_files(
    folder: str, tokens: list[int], layout: str | None = "coalesced", **fields
) -> dict[str, bytes]:
    """A whole directory: file name -> bytes."""
    description = describe(tokens, layout)
    fields.setdefault("prefix_token_ids", tokens)
    return {
        "handle.json": dump_manifest(manifest(folder, description, **fields)),
        "kv.thawkv": thaw_container.encode(payload_regions(description), alignment=64),
        "kv.thawkv.meta": sidecar(description),
    }


def old_form_files(folder: str, tokens: list[int], **fields) -> dict[str, bytes]:
    """Blocks behind their description in one file, as was written without the native extension."""
    description = describe(tokens, None)
    blocks = b"".join(
        block_payload(name, layer) for layer in range(LAYERS) for name in description["block_hashes"]
    )
    return {
        "handle.json": dump_manifest(manifest(folder, description, **fields)),
        "kv.thawkv": sidecar(description) + blocks,
    }


def write(folder: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


class Handle:
    """A directory as the public project's reader takes it: the manifest's paths are those of the
    directory it was opened from, unknown keys are passed over, files have their fixed names."""

    FIELDS = list(manifest("x", describe([])))

    def __init__(self, folder: pathlib.Path):
        fields = json.loads((folder / "handle.json").read_text())
        assert fields["version"] == 1
        missing = [name for name in self.FIELDS if name not in fields]
        assert not missing, missing
        self.fields = fields | {
            "state_dir": str(folder),
            "kv_path": str(folder / "kv.thawkv"),
            "weights_path": str(folder / "weights.thaw") if fields["weights_path"] else None,
        }
        meta = folder / "kv.thawkv.meta"
        self.description = read_sidecar(meta.read_bytes()) if meta.exists() else None
        self.regions = None
        payload = folder / "kv.thawkv"
        if payload.exists() and not payload.read_bytes().startswith(MAGIC):
            _, _, self.regions = thaw_container.read(payload)
        shape, layers = fields["block_shape"], fields["num_layers"]
        if self.description is not None:
            assert self.description["block_shape"] == shape
            assert self.description["num_layers"] == layers
            assert self.description["num_blocks"] == fields["num_kv_blocks"]
            assert max(self.description["block_ids"], default=-1) == fields["max_block_id"]

    def __getattr__(self, name):
        return self.fields[name]

    def slabs(self) -> list[bytes]:
        """K and V of every block and layer, whichever layout they are in."""
        size = self.description["block_bytes"] // 2
        data = b"".join(region.payload for region in self.regions if region.kind == "kv_live_block")
        return [data[at : at + size] for at in range(0, len(data), size)]


def read_sidecar(data: bytes) -> dict:
    assert data[:8] == MAGIC
    (size,) = struct.unpack_from("<I", data, 8)
    assert len(data) == 12 + size
    return json.loads(data[12:])


# Rollouts.


def token(token_id: int, text: str, logprob: float, *others: tuple[int, str, float]) -> dict:
    choices = sorted([(token_id, text, logprob), *others], key=lambda choice: -choice[2])
    return {
        "token_id": token_id,
        "text": text,
        "logprob": logprob,
        "topk": [{"token_id": i, "text": t, "logprob": p} for i, t, p in choices],
    }


def rollout(label: str | None, tokens: list[dict], prompt=(1, 2, 3, 4), **fields) -> dict:
    return {
        "version": 1,
        "rollout_id": hashlib.sha256(str(label).encode()).hexdigest()[:32],
        "parent_id": "77ab12de" * 4,
        "label": label,
        "model_id": "org/tiny",
        "prompt_token_ids": list(prompt),
        "fork_index": len(prompt),
        "sampling": {"temperature": 0.8, "top_p": 0.95, "seed": 42},
        "text": "".join(entry["text"] or "" for entry in tokens),
        "tokens": tokens,
        "created_at": 1781234567.0,
    } | fields


def write_rollout(folder: pathlib.Path, record: dict) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rollout.json").write_text(json.dumps(record, indent=2))
    return folder
