"""Saved sessions as files: what a handle holds, what two share, and the tree of several.

The same facts and numbers as of `thaw inspect`, `thaw diff` and `thaw log`; needs no engine, no
model, no GPU. A path is a handle directory or its handle.json.
"""

from __future__ import annotations

import os
import pathlib
import time
from typing import Any

from thaw_vllm import _handle_files as files
from thaw_vllm._handle_files import HandleFiles, open_handle
from thaw_vllm._text import byte_text, clipped, counted, printable, table, utc_time

PathLike = str | os.PathLike[str]


def _facts(handle: HandleFiles) -> dict[str, Any]:
    fields, kv = handle.fields, handle.kv
    has_blocks = kv is not None and kv.num_blocks > 0
    return {
        "name": handle.directory_name,
        "state_dir": os.path.normpath(handle.path.absolute()),
        "handle_id": fields.get("handle_id") or "",
        "parent_id": fields.get("parent_id"),
        "label": fields.get("label"),
        "model_id": fields["model_id"],
        "created_at": float(fields.get("created_at") or 0.0),
        "prefix_tokens": fields["prefix_tokens"],
        "num_kv_blocks": fields["num_kv_blocks"],
        "num_layers": fields["num_layers"],
        "block_shape": list(fields.get("block_shape") or []),
        "block_size": kv.block_size if kv and has_blocks else None,
        "block_bytes": kv.block_bytes * kv.num_layers if kv and has_blocks else None,
        "dtype": kv.dtype if kv and kv.dtype else None,
        "layout": kv.layout if kv and kv.layout else None,
        "tensor_parallel_size": handle.ranks,
        "vllm_version": fields.get("vllm_version"),
        "version": fields["version"],
        "has_weights": handle.has_weights,
        "kv_bytes": handle.kv_bytes,
        "weights_bytes": handle.weights_bytes,
        "files": list(handle.files),
        "prefix_preview": fields.get("prefix_preview"),
        "prefix_token_ids": list(fields.get("prefix_token_ids") or []),
        "block_hashes": list(kv.block_hashes) if kv else [],
    }


def summarize_handle(path: PathLike) -> dict[str, Any]:
    """All that a handle says of itself, sizes in bytes, times in Unix seconds, unknown ones None.

    FileNotFoundError where there is none; ValueError where it is damaged.
    """
    return _facts(open_handle(path))


def inspect_handle(path: PathLike) -> str:
    """What `thaw inspect` shows."""
    handle = open_handle(path)
    facts = _facts(handle)
    rows = [("model", printable(facts["model_id"]))]
    if facts["handle_id"]:
        rows.append(("id", printable(facts["handle_id"])))
    if facts["parent_id"]:
        rows.append(("parent", printable(facts["parent_id"])))
    rows.append(("created", utc_time(facts["created_at"])))
    if facts["num_kv_blocks"] == 0:
        rows.append(("prefix", "empty: no blocks were cached"))
    else:
        prefix = f"{counted(facts['prefix_tokens'], 'token')} in {counted(facts['num_kv_blocks'], 'block')}"
        rows.append(("prefix", prefix + (f" of {facts['block_size']}" if facts["block_size"] else "")))
        here = f"{byte_text(facts['kv_bytes'])} here" if facts["kv_bytes"] else "not here, only described"
        held = [here, counted(facts["num_layers"], "layer"), facts["dtype"], facts["layout"]]
        rows.append(("kv cache", ", ".join(printable(part) for part in held if part)))
        if facts["block_shape"]:
            rows.append(("block shape", str(facts["block_shape"])))
    if facts["weights_bytes"]:
        weights = f"{byte_text(facts['weights_bytes'])} here"
    else:
        weights = "not here, though it was saved with them" if facts["has_weights"] else "not included"
    rows += [("weights", weights), ("ranks", str(facts["tensor_parallel_size"]))]
    if facts["vllm_version"]:
        rows.append(("engine", "vllm " + printable(facts["vllm_version"])))
    if facts["prefix_token_ids"]:
        rows.append(("prompt", f"{counted(len(facts['prefix_token_ids']), 'token id')} recorded"))
    rows.append(("path", printable(str(handle.path))))
    if facts["prefix_preview"]:
        rows.append(("preview", f'"{clipped(facts["prefix_preview"], 200)}"'))
    return f"session {printable(handle.name)}\n" + table(rows, "  ")


def _layout_key(handle: HandleFiles) -> tuple[Any, ...]:
    return (
        handle.fields["num_layers"],
        tuple(handle.fields.get("block_shape") or ()),
        handle.kv.dtype if handle.kv else "",
        handle.ranks,
    )


def _hashes(handle: HandleFiles) -> set[str]:
    return {name for name in handle.kv.block_hashes if name} if handle.kv else set()


def _side(handle: HandleFiles, only_here: int) -> dict[str, Any]:
    keys = ("handle_id", "model_id", "created_at", "prefix_tokens", "num_kv_blocks", "kv_bytes")
    facts = _facts(handle)
    return {
        "name": handle.name,
        "path": str(handle.path),
        **{key: facts[key] for key in keys},
        "only_here_blocks": only_here,
        "has_weights": handle.has_weights,
        "block_shape": facts["block_shape"],
    }


def _common(a: Any, b: Any) -> int:
    count = 0
    for left, right in zip(a, b):
        if left != right:
            break
        count += 1
    return count


def compare_handles(a: PathLike, b: PathLike) -> dict[str, Any]:
    """What two handles share and where they part: the object of `thaw diff --json`.

    Of texts only recorded previews are compared, since that needs no tokenizer.
    """
    return _compare(open_handle(a), open_handle(b))


def _compare(a: HandleFiles, b: HandleFiles) -> dict[str, Any]:
    same_model = a.fields["model_id"] == b.fields["model_id"]
    same_layout = _layout_key(a) == _layout_key(b)
    of_a, of_b = _hashes(a), _hashes(b)
    has_hashes = bool(of_a) and bool(of_b)
    shared = len(of_a & of_b)
    described = next((h.kv for h in (a, b) if h.kv and h.kv.block_size), None)
    block_size = described.block_size if described else None
    block_bytes = described.block_bytes * described.num_layers if described else None
    ids_a, ids_b = a.fields.get("prefix_token_ids"), b.fields.get("prefix_token_ids")
    shared_tokens = None if ids_a is None or ids_b is None else _common(ids_a, ids_b)
    parts_at = None
    if ids_a is not None and ids_b is not None and shared_tokens is not None:
        at_a = ids_a[shared_tokens] if shared_tokens < len(ids_a) else None
        at_b = ids_b[shared_tokens] if shared_tokens < len(ids_b) else None
        if at_a is not None or at_b is not None:
            parts_at = {"token": shared_tokens, "a": at_a, "b": at_b}
    text = None
    preview_a, preview_b = a.fields.get("prefix_preview"), b.fields.get("prefix_preview")
    if preview_a is not None and preview_b is not None:
        at = _common(preview_a, preview_b)
        if at < len(preview_a) or at < len(preview_b):
            text = {
                "from": "previews",
                "shared": preview_a[max(0, at - 100) : at],
                "a": preview_a[at : at + 300],
                "b": preview_b[at : at + 300],
            }
    return {
        "a": _side(a, len(of_a) - shared),
        "b": _side(b, len(of_b) - shared),
        "same_model": same_model,
        "same_layout": same_layout,
        "block_size": block_size,
        "shared_blocks": shared if has_hashes else None,
        "shared_block_tokens": shared * block_size if has_hashes and block_size else None,
        "shared_bytes": (shared * block_bytes if same_model and same_layout else 0)
        if has_hashes and block_bytes
        else None,
        "shared_tokens": shared_tokens,
        "parts_at": parts_at,
        "text": text,
    }


def _percent(part: int, whole: int) -> str:
    return f"{part * 100 // whole if whole else 0} %"


def diff_handles(a: PathLike, b: PathLike) -> str:
    """What `thaw diff` shows: shared blocks, where the prompts part, how they read there."""
    left, right = open_handle(a), open_handle(b)
    found = _compare(left, right)
    sides = []
    for letter, handle, side in (("A", left, found["a"]), ("B", right, found["b"])):
        sides.append(
            (
                letter,
                printable(handle.name),
                printable(side["handle_id"][:12]),
                counted(side["prefix_tokens"], "token"),
                counted(side["num_kv_blocks"], "block"),
                utc_time(side["created_at"]),
            )
        )
    model_a, model_b = printable(left.fields["model_id"]), printable(right.fields["model_id"])
    rows = [
        ("model", f"same, {model_a}" if found["same_model"] else f"differ: A {model_a}, B {model_b}"),
        ("blocks", "same layout" if found["same_layout"] else "another layout"),
    ]
    shared = found["shared_blocks"]
    if shared is None:
        rows.append(("shared", "not known: a handle without blocks, or without their names"))
    else:
        only_a, only_b = found["a"]["only_here_blocks"], found["b"]["only_here_blocks"]
        line = counted(shared, "block")
        if found["shared_block_tokens"] is not None:
            line += f", {counted(found['shared_block_tokens'], 'token')}"
        line += f" ({_percent(shared, shared + only_a)} of A, {_percent(shared, shared + only_b)} of B)"
        if not (found["same_model"] and found["same_layout"]):
            line += ", of the same text only"
        elif found["shared_bytes"]:
            line += f", {byte_text(found['shared_bytes'])} in both"
        rows.append(("shared", line))
        rows.append(("only in A", counted(only_a, "block")))
        rows.append(("only in B", counted(only_b, "block")))
    rows.append(("parted", _parted(found)))
    rows.append(
        ("weights", f"A {'yes' if left.has_weights else 'no'}, B {'yes' if right.has_weights else 'no'}")
    )
    out = table(sides) + "\n" + table(rows, "  ")
    if found["text"]:
        out += f'\n  both "{clipped(found["text"]["shared"], 72, keep_end=True)}"\n'
        out += f'  A    "{clipped(found["text"]["a"], 72)}"\n  B    "{clipped(found["text"]["b"], 72)}"\n'
    return out


def _parted(found: dict[str, Any]) -> str:
    if found["shared_tokens"] is None:
        shared, size = found["shared_blocks"], found["block_size"]
        if shared is None:
            return "not known"
        if not found["a"]["only_here_blocks"] and not found["b"]["only_here_blocks"]:
            return "nowhere: the same blocks"
        if not size:
            return f"in block {shared:,}"
        first, last = shared * size, (shared + 1) * size
        return f"in block {shared:,}, between tokens {first:,} and {last:,} (prompts were not recorded)"
    at = found["parts_at"]
    if at is None:
        return f"nowhere: {counted(found['shared_tokens'], 'recorded token')} are the same"
    told = [f"{side} {'ends here' if at[key] is None else at[key]}" for side, key in (("A", "a"), ("B", "b"))]
    return f"at token {at['token']:,}: {', '.join(told)}"


def find_handles(root: PathLike) -> list[pathlib.Path]:
    """The handles in a directory: itself where it is one, else those one level below, by name."""
    folder = pathlib.Path(root)
    if not folder.exists():
        raise FileNotFoundError(f"{root}: no such directory")
    if not folder.is_dir() or (folder / files.HANDLE_FILE).exists():
        return [folder]
    found = [
        entry
        for entry in folder.iterdir()
        if not entry.is_symlink() and entry.is_dir() and (entry / files.HANDLE_FILE).exists()
    ]
    return sorted(found, key=str)


def trace_handles(root: PathLike) -> dict[str, Any]:
    """The tree of the handles in a directory: the object of `thaw log --json`."""
    return _trace(root)[0]


def _trace(root: PathLike) -> tuple[dict[str, Any], list[HandleFiles], list[int]]:
    handles: list[HandleFiles] = []
    unread = []
    for path in find_handles(root):
        try:
            handles.append(open_handle(path))
        except (OSError, ValueError) as error:
            if path == pathlib.Path(root):
                raise
            unread.append({"path": str(path), "reason": str(error)})
    by_id: dict[str, int] = {}
    for index, handle in enumerate(handles):
        if handle.fields.get("handle_id"):
            by_id.setdefault(handle.fields["handle_id"], index)
    parents: list[int | None] = [None] * len(handles)
    children: list[list[int]] = [[] for _ in handles]
    roots: list[int] = []

    def leads_to(start: int, goal: int) -> bool:
        at: int | None = start
        while at is not None:
            if at == goal:
                return True
            at = parents[at]
        return False

    for index in sorted(range(len(handles)), key=lambda i: (handles[i].fields.get("created_at") or 0.0, i)):
        parent = by_id.get(handles[index].fields.get("parent_id") or "")
        if parent is None or leads_to(parent, index):
            roots.append(index)
            continue
        parents[index] = parent
        children[parent].append(index)
    entries = []
    distinct: set[tuple[str, str, str]] = set()
    unnamed = 0
    for index, handle in enumerate(handles):
        parent = parents[index]
        shared = None
        if parent is not None:
            other = handles[parent]
            may_share = handle.fields["model_id"] == other.fields["model_id"]
            may_share = may_share and _layout_key(handle) == _layout_key(other)
            shared = len(_hashes(handle) & _hashes(other)) if may_share else 0
        if handle.kv is None:
            unnamed += handle.fields["num_kv_blocks"]
        else:
            distinct |= {(handle.fields["model_id"], handle.kv.dtype, name) for name in _hashes(handle)}
            unnamed += handle.kv.block_hashes.count("")
        facts = _facts(handle)
        entries.append(
            {
                "name": handle.name,
                "path": str(handle.path),
                "handle_id": facts["handle_id"],
                "parent_id": facts["parent_id"],
                "parent": None if parent is None else str(handles[parent].path),
                "children": [str(handles[child].path) for child in children[index]],
                "model_id": facts["model_id"],
                "created_at": facts["created_at"],
                "prefix_tokens": facts["prefix_tokens"],
                "num_kv_blocks": facts["num_kv_blocks"],
                "shared_with_parent": shared,
                "kv_bytes": handle.kv_bytes,
                "weights_bytes": handle.weights_bytes,
            }
        )
    report = {
        "root": os.fspath(root),
        "handles": entries,
        "held_blocks": sum(handle.fields["num_kv_blocks"] for handle in handles),
        "distinct_blocks": len(distinct) + unnamed,
        "kv_bytes": sum(handle.kv_bytes for handle in handles),
        "unread": unread,
    }
    return report, handles, roots


def _age(created_at: float) -> str:
    seconds = max(0.0, time.time() - created_at)
    if created_at <= 0:
        return ""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return f"{int(seconds)} s ago"


def log_handles(root: PathLike) -> str:
    """What `thaw log` shows: the tree, with blocks that a child shares with its parent."""
    report, handles, roots = _trace(root)
    if not handles and not report["unread"]:
        return f"no handles in {os.fspath(root)}\n"
    by_path = {str(handle.path): index for index, handle in enumerate(handles)}
    head = f"{printable(os.fspath(root))}  {counted(len(handles), 'session')}"
    models = {handle.fields["model_id"] for handle in handles}
    if len(models) == 1:
        head += f", {printable(next(iter(models)).rpartition('/')[2])}"
    if report["held_blocks"]:
        head += f", {counted(report['distinct_blocks'], 'distinct block')} of {report['held_blocks']:,} held"
    if report["kv_bytes"]:
        head += f", {byte_text(report['kv_bytes'])}"
    rows: list[tuple[str, ...]] = []

    def add(index: int, prefix: str, below: str) -> None:
        entry = report["handles"][index]
        shares = ""
        if entry["shared_with_parent"] is not None:
            blocks = entry["num_kv_blocks"]
            shared = min(entry["shared_with_parent"], blocks)
            shares = f"shares {shared:,}, +{blocks - shared:,}" if blocks else "no blocks"
        rows.append(
            (
                prefix + clipped(entry["name"], 40),
                printable(entry["handle_id"][:12]) or "-",
                f"{entry['prefix_tokens']:,} tok",
                f"{entry['num_kv_blocks']:,} blk",
                byte_text(entry["kv_bytes"]) if entry["kv_bytes"] else "no KV here",
                shares,
                _age(entry["created_at"]),
            )
        )
        for place, child in enumerate(entry["children"]):
            last = place == len(entry["children"]) - 1
            add(by_path[child], below + ("`- " if last else "|- "), below + ("   " if last else "|  "))

    for index in roots:
        add(index, "", "")
    lines = "".join(f"not read: {printable(entry['reason'])}\n" for entry in report["unread"])
    return f"{head}\n\n{table(rows)}{lines}"
