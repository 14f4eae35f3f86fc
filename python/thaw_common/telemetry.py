"""Switches of the environment, and the one way in which a slower path is told of."""

from __future__ import annotations

import os
import sys
from typing import Protocol


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() in ("1", "true", "yes", "on")


def strict_mode() -> bool:
    """True, the default: a fast path that fails raises. THAW_ALLOW_PYTHON_FALLBACK=1 lets slower ones try."""
    return not _is_set("THAW_ALLOW_PYTHON_FALLBACK")


def quiet_mode() -> bool:
    """THAW_QUIET=1: no warnings about fallbacks."""
    return _is_set("THAW_QUIET")


def verify_mode() -> bool:
    """False where THAW_VERIFY=0: payloads are not compared with their checksums."""
    return os.environ.get("THAW_VERIFY", "") != "0"


def fallback_warning(label: str, exc: BaseException, *, dst: str = "") -> None:
    """Says on stderr that `label` failed and what is tried instead (`dst`)."""
    if quiet_mode():
        return
    instead = f"; falling back to {dst}" if dst else ""
    print(f"[thaw] {label} failed: {type(exc).__name__}: {exc}{instead}", file=sys.stderr)


class _Pinnable(Protocol):
    def is_pinned(self) -> bool: ...


def check_pinned(tensor: _Pinnable, name: str) -> bool:
    """True where a host tensor is pinned; else False, and a warning: copies from it are slow."""
    if tensor.is_pinned():
        return True
    if not quiet_mode():
        print(f"[thaw] {name} is not pinned; copies of it to a GPU are slow", file=sys.stderr)
    return False
