"""Plain texts of the reports: columns, counts, times, and text of files made harmless."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Sequence


def printable(text: str) -> str:
    """With control characters, and those that turn the direction, written out."""
    out = []
    for char in text:
        if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
            out.append({"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(char, f"\\u{ord(char):04x}"))
        else:
            out.append(char)
    return "".join(out)


def clipped(text: str, limit: int, keep_end: bool = False) -> str:
    """At most `limit` characters of printable(text), with dots where something was left out."""
    shown = printable(text)
    if len(shown) <= limit:
        return shown
    return "..." + shown[3 - limit :] if keep_end else shown[: limit - 3] + "..."


def counted(number: int, noun: str) -> str:
    """ "1 block", "1,024 blocks"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def byte_text(count: float) -> str:
    """In powers of 1,024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.1f} {unit}" if unit == "GiB" else f"{count:.0f} {unit}"


def utc_time(seconds: float) -> str:
    if seconds <= 0:
        return "not known"
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def table(rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Left-aligned columns two spaces apart, a line each."""
    widths = [0] * max((len(row) for row in rows), default=0)
    for row in rows:
        for column, cell in enumerate(row):
            widths[column] = max(widths[column], len(cell))
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "".join(f"{indent}{line}\n" for line in lines)
