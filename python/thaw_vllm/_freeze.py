"""Models written as `.thaw` files, by the binary that the package carries."""

from __future__ import annotations

import os
import pathlib
import subprocess
import time
from typing import Any

from thaw_common import format as container
from thaw_common.cloud import is_remote
from thaw_common.util import rank_snapshot_path

FREEZE_TIMEOUT_S = 3600.0


def binary() -> str:
    """Path of the `thaw` binary: THAW_BINARY, else the package's own."""
    from_environment = os.environ.get("THAW_BINARY")
    return from_environment or str(pathlib.Path(__file__).parent / "bin" / "thaw")


def freeze_weights(model: str, path: str | os.PathLike[str], tensor_parallel: int = 1) -> dict[str, Any]:
    """`thaw freeze MODEL --output PATH`: the statistics of freeze_model(), whose `params` are regions here.

    Of s3:// files nothing is counted. RuntimeError with what the binary says.
    """
    started = time.monotonic()
    command = [binary(), "freeze", *([model] if model else []), "--output", os.fspath(path)]
    if tensor_parallel > 1:
        command += ["--tensor-parallel", str(tensor_parallel)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=FREEZE_TIMEOUT_S)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip() or f"{command[0]} freeze ended with {done.returncode}")
    elapsed = max(time.monotonic() - started, 1e-9)
    regions: list[container.Region] = []
    if not is_remote(path):
        for rank in range(tensor_parallel):
            with open(str(rank_snapshot_path(os.fspath(path), rank)), "rb") as f:
                found = container.read_container(f).regions
                regions += [region for region in found if region.kind == container.KIND_WEIGHTS]
    total = sum(region.size for region in regions)
    return {
        "num_regions": len(regions),
        "total_bytes": total,
        "elapsed_s": elapsed,
        "throughput_gb_s": total / elapsed / 1e9,
        "backend": "thaw",
        "params": [(f"region {region.logical_id}", region.size) for region in regions],
    }
