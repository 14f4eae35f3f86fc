"""Names of shards."""

from __future__ import annotations

import os
from typing import TypeVar

PathLike = TypeVar("PathLike", str, "os.PathLike[str]")


def rank_snapshot_path(base: PathLike, rank: int) -> PathLike | str:
    """The file of a tensor-parallel rank: "weights.thaw", 1 -> "weights.rank1.thaw".

    Rank 0 is `base` itself; a name without an extension gets the rank behind it. URIs too.
    """
    if rank < 0:
        raise ValueError(f"rank is {rank}; it must not be negative")
    if rank == 0:
        return base
    text = os.fspath(base)
    folder, slash, name = text.rpartition("/")
    stem, dot, extension = name.rpartition(".")
    if not stem:
        return f"{text}.rank{rank}"
    return f"{folder}{slash}{stem}.rank{rank}{dot}{extension}"
