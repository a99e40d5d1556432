#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""A guest that never stops writing: overwrites blocks of one file of the disk, over NBD.

    guest.py URI BLOCKS LOG IDENTITY SEED

BLOCKS lists the 4 KiB blocks that belong to the file, so the file system stays sound at every
instant. Writes go out one after the other; each carries content that follows from
(identity, number), and LOG gets one record for each when it is issued and one when it is
acknowledged. What a frozen view of the disk shows must therefore be the disk after exactly the
first K writes, for some K that the log bounds. After every so many writes a dot goes to standard
output. The guest stops when its standard input ends.
"""

import hashlib
import random
import select
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

BLOCK = 4096
WRITES_A_DOT = 50
RECORD = struct.Struct("<cQQd")  # 'i'ssued or 'a'cknowledged, number, block, time.monotonic()


def content(identity: int, number: int) -> bytes:
    """The 4 KiB that write `number` of guest `identity` carries, its number in front."""
    stamp = struct.pack("<4sIQ", b"GST!", identity, number)
    return stamp + (hashlib.blake2b(stamp).digest() * (BLOCK // 64))[: BLOCK - len(stamp)]


def stamp_of(block: bytes) -> tuple[int, int] | None:
    """Identity and number of the write that a block carries."""
    magic, identity, number = struct.unpack_from("<4sIQ", block)
    return (identity, number) if magic == b"GST!" else None


def read_log(path: Path) -> Iterator[tuple[bytes, int, int, float]]:
    """The records of a log, but for a last one that is cut off."""
    data = path.read_bytes()
    whole = len(data) - len(data) % RECORD.size
    yield from RECORD.iter_unpack(data[:whole])  # type: ignore[misc]


def main() -> None:
    import nbd  # pylint: disable=import-outside-toplevel

    uri, blocks_file, log_file, identity, seed = sys.argv[1:]
    blocks = [int(line) for line in Path(blocks_file).read_text(encoding="ascii").split()]
    chance = random.Random(int(seed))
    disk = nbd.NBD()
    disk.connect_uri(uri)
    with open(log_file, "wb", buffering=0) as log:
        print("ready", flush=True)
        number = 0
        window = 0
        while not select.select([sys.stdin], [], [], 0)[0]:
            number += 1
            if number % 3000 == 1:  # work stays in one place for a while, as real work does
                window = chance.randrange(len(blocks))
            block = blocks[(window + chance.randrange(512)) % len(blocks)]
            log.write(RECORD.pack(b"i", number, block, time.monotonic()))
            disk.pwrite(content(int(identity), number), block * BLOCK)
            log.write(RECORD.pack(b"a", number, block, time.monotonic()))
            if number % WRITES_A_DOT == 0:
                print(".", end="", flush=True)
    disk.shutdown()


if __name__ == "__main__":
    main()
