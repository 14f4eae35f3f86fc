"""The container of `.thaw` and `.thawkv` files, written and read from its description alone
(kvsnap/FORMAT.md): shares nothing with the C++ that the tests compare it with."""

import dataclasses
import pathlib
import struct

MAGIC = b"THAW"
PAGE = 4096
ENTRY = struct.Struct("<IIQQII")
KINDS = {"weights": 0, "kv_live_block": 1, "metadata": 2}


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC = _crc_table()


def crc32c(data: bytes) -> int:
    """Castagnoli's, a byte at a time."""
    state = 0xFFFFFFFF
    for byte in data:
        state = _CRC[(state ^ byte) & 255] ^ state >> 8
    return state ^ 0xFFFFFFFF


@dataclasses.dataclass
class Region:
    kind: str
    logical_id: int
    payload: bytes
    offset: int = 0
    checksum: int | None = None


def encode(regions, version=2, commit="", alignment=PAGE, table_last=False) -> bytes:
    """A whole file. `alignment` of the payloads; the table goes behind them where asked for."""
    table_bytes = len(regions) * ENTRY.size
    position = PAGE if table_last else PAGE + table_bytes
    table, body, start = b"", b"", position
    for region in regions:
        position += -position % alignment
        body += bytes(position - start - len(body)) + region.payload
        checksum = crc32c(region.payload) if version == 2 else 0
        table += ENTRY.pack(KINDS[region.kind], region.logical_id, len(region.payload), position, checksum, 0)
        position += len(region.payload)
    table_offset = position if table_last else PAGE
    header = MAGIC + struct.pack("<IQQ", version, len(regions), table_offset)
    header += commit.encode().ljust(40, b"\0")
    header = header.ljust(PAGE, b"\0")
    return header + (body + table if table_last else table + body)


def read(path: pathlib.Path) -> tuple[int, str, list[Region]]:
    """(version, engine commit, regions). Fails where anything is not as the format says."""
    data = path.read_bytes()
    assert data[:4] == MAGIC, "no container"
    version, count, table = struct.unpack_from("<IQQ", data, 4)
    assert version in (1, 2), version
    commit = data[24:64].rstrip(b"\0").decode()
    assert not any(data[64:PAGE]), "the header's rest is not zero"
    names = {number: name for name, number in KINDS.items()}
    regions = []
    for index in range(count):
        kind, logical_id, size, offset, checksum, reserved = ENTRY.unpack_from(
            data, table + index * ENTRY.size
        )
        assert reserved == 0 and offset + size <= len(data)
        payload = data[offset : offset + size]
        if version == 2:
            assert crc32c(payload) == checksum, f"region {index} is damaged"
        regions.append(Region(names[kind], logical_id, payload, offset, checksum))
    return version, commit, regions
