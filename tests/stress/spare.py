# SPDX-License-Identifier: MIT
"""A disk that is resized again and again beside the guests' disks, and what it must hold.

Nobody but this page uses it, between one resize and the next, so its bytes and the bitmaps of both
its nodes are known exactly: what a shorter disk loses is gone, what a longer one gains is zero
and clean.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import nbd

SECTOR = 512
MAX_SIZE = 1 << 20
NODES = ("spare-file", "spare")


@dataclass
class SpareBitmap:
    """A bitmap of one of the nodes, by the granules that are dirty."""

    node: str
    name: str
    granularity: int
    enabled: bool
    dirty: set[int] = field(default_factory=set)

    def mark(self, offset: int, length: int) -> None:
        """The range was written."""
        if self.enabled:
            last = (offset + length - 1) // self.granularity
            self.dirty.update(range(offset // self.granularity, last + 1))

    def resize(self, size: int) -> None:
        """The disk has another size."""
        granules = -(-size // self.granularity)
        self.dirty = {granule for granule in self.dirty if granule < granules}

    def sectors(self, size: int) -> set[int]:
        """The sectors of the disk that are dirty."""
        each = self.granularity // SECTOR
        return {granule * each + part for granule in self.dirty for part in range(each)
                if (granule * each + part) * SECTOR < size}


class Spare:
    """The disk and its model; `machine` is that of the stress test."""

    def __init__(self, machine: Any, seed: int):
        self._machine, self._qmp = machine, machine.qmp
        self._chance = random.Random(seed)
        self._bitmaps: list[SpareBitmap] = []
        self._serial = 0
        self.bytes = bytearray(MAX_SIZE // 2)
        self.resizes = 0
        image = machine.test.image("spare.img", len(self.bytes))
        self._qmp.command("blockdev-add", driver="file", node_name="spare-file", filename=image)
        self._qmp.command("blockdev-add", driver="raw", node_name="spare", file="spare-file")

    def step(self) -> None:
        """Some changes, a resize, and a look at everything that is left."""
        for _ in range(self._chance.randint(1, 3)):
            self._chance.choice([self._change_bitmaps, self._write, self._write])()
        self._resize()
        self.check()

    # --- changes ---

    def _change_bitmaps(self) -> None:
        if len(self._bitmaps) < 4:
            self._serial += 1
            bitmap = SpareBitmap(self._chance.choice(NODES), f"s{self._serial}",
                                 1 << self._chance.choice([9, 12, 16]), True)
            self._bitmaps.append(bitmap)
            self._qmp.command("block-dirty-bitmap-add", node=bitmap.node, name=bitmap.name,
                              granularity=bitmap.granularity)
            return
        bitmap = self._chance.choice(self._bitmaps)
        verb = self._chance.choice(["enable", "disable", "clear", "remove"])
        self._qmp.command(f"block-dirty-bitmap-{verb}", node=bitmap.node, name=bitmap.name)
        if verb == "remove":
            self._bitmaps.remove(bitmap)
        elif verb == "clear":
            bitmap.dirty.clear()
        else:
            bitmap.enabled = verb == "enable"

    def _write(self) -> None:
        """A client comes, writes here and there, and goes."""
        self._machine.export("spare", "spare", writable=True)
        client = nbd.NBD()
        client.connect_uri(self._machine.uri("spare"))
        assert client.get_size() == len(self.bytes), (client.get_size(), len(self.bytes))
        for _ in range(5):
            offset = self._chance.randrange(len(self.bytes) // SECTOR) * SECTOR
            length = min(self._chance.randint(1, 40) * SECTOR, len(self.bytes) - offset)
            byte = self._chance.randrange(256)
            client.pwrite(bytes([byte]) * length, offset)
            self.bytes[offset : offset + length] = bytes([byte]) * length
            for bitmap in self._bitmaps:
                bitmap.mark(offset, length)
        client.shutdown()
        self._machine.unexport("spare")

    def _resize(self) -> None:
        """Also tried while a bitmap is in use, which refuses it and changes nothing."""
        size = self._chance.randint(8, MAX_SIZE // SECTOR) * SECTOR
        node = self._chance.choice(NODES)
        still = [bitmap for bitmap in self._bitmaps if not bitmap.enabled]
        if still and self._chance.random() < 0.5:
            bitmap = self._chance.choice(still)
            self._machine.export("holds", bitmap.node, bitmaps=[bitmap.name])
            self._qmp.refuse("block_resize", node_name=node, size=size)
            self._machine.unexport("holds")
        self._qmp.command("block_resize", node_name=node, size=size)
        self.resizes += 1
        del self.bytes[size:]
        self.bytes += bytes(size - len(self.bytes))
        for bitmap in self._bitmaps:
            bitmap.resize(size)

    # --- looks ---

    def check(self) -> None:
        """Compare the bytes and all bitmaps."""
        size = len(self.bytes)
        self._look("spare", [], self._compare_bytes)
        for node in self._qmp.command("query-named-block-nodes"):
            if node["node-name"] in NODES:
                assert node["image"]["virtual-size"] == size, node
        for bitmap in self._bitmaps:

            def compare(client: Any, wanted: SpareBitmap = bitmap) -> None:
                found = dirty_sectors(client, wanted.name, size)
                assert found == wanted.sectors(size), (wanted, sorted(found)[:9])

            if not bitmap.enabled:
                self._look(bitmap.node, [bitmap.name], compare)

    def _look(self, node: str, bitmaps: list[str], compare: Callable[[Any], None]) -> None:
        self._machine.export("spare", node, bitmaps=bitmaps)
        client = nbd.NBD()
        for name in bitmaps:
            client.add_meta_context(f"qemu:dirty-bitmap:{name}")
        client.connect_uri(self._machine.uri("spare"))
        compare(client)
        client.shutdown()
        self._machine.unexport("spare")

    def _compare_bytes(self, client: Any) -> None:
        found = client.pread(len(self.bytes), 0)
        assert bytes(found) == bytes(self.bytes), "the resized disk lost or kept wrong bytes"


def dirty_sectors(client: Any, name: str, size: int) -> set[int]:
    """What the client is told of a bitmap."""
    dirty: set[int] = set()
    position = 0

    def collect(context: str, offset: int, entries: list[int], _error: Any) -> int:
        nonlocal position
        if context == f"qemu:dirty-bitmap:{name}":
            for length, flags in zip(entries[::2], entries[1::2]):
                if flags & 1:
                    dirty.update(range(offset // SECTOR, (offset + length) // SECTOR))
                offset += length
            position = offset
        return 0

    while position < size:
        client.block_status(size - position, position, collect)
    return dirty
