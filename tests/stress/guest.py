#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""One guest of the stress test: lanes of writes, zeroes and trims, in flight at the same time.

    guest.py LANES FIRST COUNT SEED LOG URI...

Each URI is a disk. Of LANES lanes in all this guest has COUNT, from FIRST on. A lane owns every LANES-th block of
all disks and works strictly in sequence, each operation on the disk after that of the one before, so
its history crosses disks. LOG gets a record when an operation is issued and one when it is
acknowledged. The guest ends when its input does.
"""

import random
import select
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BLOCK = 4096
RECORD = struct.Struct("<cIIIId")  # 'i' or 'a', lane, number, disk, block, CLOCK_MONOTONIC
STAMP = struct.Struct("<4sII")
NEVER = float("inf")


@dataclass
class Operation:
    """One operation of a lane, as the log tells it."""

    disk: int
    block: int
    stamp: int  # what the block reads as: the operation's number, or 0 for zeroes
    issued: float
    acknowledged: float = NEVER


def content(lane: int, number: int) -> bytes:
    """A block that says which operation wrote it, all through."""
    return STAMP.pack(b"LANE", lane, number) * (BLOCK // STAMP.size) + bytes(BLOCK % STAMP.size)


def stamp_of(data: bytes, lane: int) -> int:
    """The number of the write that a block shows, 0 for zeroes. A torn block is an error."""
    magic, owner, number = STAMP.unpack_from(data)
    expected = content(lane, number) if magic == b"LANE" and owner == lane else bytes(BLOCK)
    if data != expected:
        raise AssertionError(f"a block of lane {lane} is torn or not its own: {data[:24]!r}")
    return int(number)


def is_write(number: int) -> bool:
    """Two of three operations write data; the others make zeroes."""
    return number % 3 != 0


def read_log(path: Path, lanes: int) -> list[list[Operation]]:
    """The operations of each lane."""
    found: list[list[Operation]] = [[] for _ in range(lanes)]
    data = path.read_bytes()
    whole = len(data) - len(data) % RECORD.size
    for kind, lane, number, disk, block, when in RECORD.iter_unpack(data[:whole]):
        if kind == b"i":
            found[lane].append(Operation(disk, block, number if is_write(number) else 0, when))
        else:
            found[lane][number - 1].acknowledged = when
    return found


class Lane:
    """A sequence of operations, one in flight."""

    def __init__(self, index: int, lanes: int, seed: int, blocks: int):
        self.index = index
        self.busy = False
        self._chance = random.Random(seed * 1000 + index)
        self._number = 0
        self._lanes, self._blocks = lanes, blocks

    def next(self, disks: int) -> tuple[int, int, int]:
        """Number, disk and block of the next operation."""
        self._number += 1
        block = self._chance.randrange(self._blocks // self._lanes) * self._lanes + self.index
        return self._number, self._number % disks, block


def main() -> None:
    import nbd  # pylint: disable=import-outside-toplevel

    all_lanes, first, count, seed = (int(argument) for argument in sys.argv[1:5])
    log_file, *uris = sys.argv[5:]
    disks = []
    for uri in uris:
        disk = nbd.NBD()
        disk.connect_uri(uri)
        disks.append(disk)
    blocks = disks[0].get_size() // BLOCK
    lanes = [Lane(index, all_lanes, seed, blocks) for index in range(first, first + count)]
    failures: list[int] = []

    with open(log_file, "wb", buffering=0) as log:

        def issue(lane: Lane) -> None:
            number, disk, block = lane.next(len(disks))
            lane.busy = True

            def acknowledge(error: int) -> int:
                lane.busy = False
                if error:
                    failures.append(error)
                    return 1
                log.write(RECORD.pack(b"a", lane.index, number, disk, block, time.monotonic()))
                return 1

            log.write(RECORD.pack(b"i", lane.index, number, disk, block, time.monotonic()))
            offset = block * BLOCK
            if is_write(number):
                buffer = nbd.Buffer.from_bytearray(bytearray(content(lane.index, number)))
                disks[disk].aio_pwrite(buffer, offset, acknowledge)
            elif number % 2:
                disks[disk].aio_zero(BLOCK, offset, acknowledge)
            else:
                disks[disk].aio_trim(BLOCK, offset, acknowledge)

        print("ready", flush=True)
        try:
            for step in wait_steps(disks, lambda: any(lane.busy for lane in lanes)):
                for lane in lanes:
                    if step and not lane.busy and not failures:
                        issue(lane)
        except nbd.Error as error:
            sys.exit(f"the server is gone: {error}")
    if failures:
        sys.exit(f"operations failed: {failures}")


def wait_steps(disks: list[Any], busy: Callable[[], bool]) -> Iterator[bool]:
    """Let the connections work; yields whether new operations may begin, until all are done."""
    while True:
        going_on = not select.select([sys.stdin], [], [], 0)[0]
        yield going_on
        if not going_on and not busy():
            return
        for disk in disks:
            disk.poll(1)


if __name__ == "__main__":
    main()
