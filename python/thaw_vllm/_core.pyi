"""The C++ coalescer, pool and server inside of this process."""

from collections.abc import Mapping
from typing import Any

from typing_extensions import Buffer

version: str

def crc32c(buffer: Buffer, previous: int) -> int:
    """CRC32C of a contiguous buffer (BufferError for another); ``previous`` is that of the bytes before it, 0
    for none. Releases the GIL."""

class Engine:
    """A thaw server without a port: whoever connect()s speaks HTTP/1.1 to it.

    ``model`` is what `thaw serve` takes ("": the default model), ``settings`` its flags without dashes in
    front: {"kv_bytes": "512MiB", "workers": 2, "register": ["name=path"], "verify_weights": True}. Returns
    once a worker serves. Raises ValueError for what is wrong with them, OSError (FileNotFoundError,
    TimeoutError) for what the system or a file refuses, RuntimeError for the rest. Its threads get no
    signals, its descriptors are not in the process's table, it releases the GIL wherever it waits, and it
    ends with the interpreter. Safe for threads; in a forked child it raises RuntimeError.
    """

    def __init__(self, model: str, *, settings: Mapping[str, Any] = ..., worker_binary: str) -> None: ...
    def connect(self) -> int:
        """A connected descriptor, the caller's to close. RuntimeError once the engine has ended."""
    def close(self, drain_s: float = 0.0) -> None:
        """Lets requests finish for so many seconds, cuts the rest, ends the workers. Waits for that."""
    def abandon(self) -> None:
        """In a forked child: forgets the engine, which is the parent's. Elsewhere it does nothing."""
    @property
    def model_name(self) -> str: ...
