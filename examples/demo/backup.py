# SPDX-License-Identifier: MIT
"""Checkpoints and pull backups, in QMP and NBD: what a backup program does."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbd
from qmp import Qmp
from verify import Instant

CHUNK = 1 << 20
Extents = list[tuple[int, int]]


class BackupFailed(Exception):
    """The backup's client was cut off."""


@dataclass
class Backup:
    """One backup as it came out."""

    name: str
    instant: Instant
    extents: Extents
    image: Path
    copied: int = 0
    finished: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def dirty(self) -> int:
        """Bytes that the bitmap called dirty."""
        return sum(length for _, length in self.extents)


class Disk:
    """A node of the daemon, its NBD server, and the frozen views made of it."""

    def __init__(self, qmp: Qmp, node: str, size: int, server: Path, folder: Path):
        self.qmp, self.node, self.size = qmp, node, size
        self._server, self._folder = server, folder
        self._exported = False

    def uri(self, export: str) -> str:
        """Where clients find an export."""
        return f"nbd+unix:///{export}?socket={self._server}"

    def freeze(self, actions: list[dict[str, Any]], bitmap: str | None) -> Instant:
        """Switch bitmaps and put a copy-before-write filter over the disk, in one instant; then
        export the frozen view, with `bitmap` telling what is dirty in it."""
        scratch = self._folder / "scratch.img"
        with open(scratch, "wb") as file:
            file.truncate(self.size)
        self.qmp.run(
            "blockdev-add", driver="file", node_name="scratch", filename=str(scratch), quiet=True
        )
        options: dict[str, Any] = {
            "driver": "copy-before-write",
            "node-name": "cbw",
            "file": self.node,
            "target": "scratch",
        }
        if bitmap:
            options["bitmap"] = {"node": self.node, "name": bitmap}
        insert = {"type": "blockdev-filter-insert", "data": {"options": options}}
        sent = time.monotonic()
        self.qmp.run("transaction", actions=[*actions, insert])
        instant = Instant(sent, time.monotonic())
        self.qmp.run("blockdev-add", driver="snapshot-access", node_name="frozen", file="cbw")
        export: dict[str, Any] = {"type": "nbd", "id": "backup", "node_name": "frozen"}
        if bitmap:
            export["bitmaps"] = [{"node": self.node, "name": bitmap}]
        self.qmp.run("block-export-add", name="backup", **export)
        self._exported = True
        return instant

    def cut_off(self) -> None:
        """End the view's export, whoever is reading."""
        self.qmp.run("block-export-del", id="backup", mode="hard")
        self.qmp.wait_event("BLOCK_EXPORT_DELETED", id="backup")
        self._exported = False

    def thaw(self) -> None:
        """Drop the frozen view."""
        if self._exported:
            self.cut_off()
        self.qmp.run("blockdev-del", node_name="frozen", quiet=True)
        self.qmp.run("blockdev-filter-remove", node_name="cbw")
        self.qmp.run("blockdev-del", node_name="scratch", quiet=True)
        (self._folder / "scratch.img").unlink()

    def pull_all(self, target: Path) -> int:
        """Copy the whole frozen disk with nbdcopy; returns the bytes that were not known zero."""
        client = nbd.NBD()
        client.add_meta_context("base:allocation")
        client.connect_uri(self.uri("backup"))
        data = [e for e in extents_of(client, "base:allocation", self.size) if not e[2] & 1]
        client.shutdown()
        subprocess.run(["nbdcopy", self.uri("backup"), str(target)], check=True)
        return sum(length for _, length, _ in data)

    def dirty_extents(self, bitmap: str) -> Extents:
        """Which parts of the frozen disk the exported bitmap calls dirty."""
        context = f"qemu:dirty-bitmap:{bitmap}"
        client = nbd.NBD()
        client.add_meta_context(context)
        client.connect_uri(self.uri("backup"))
        found = extents_of(client, context, self.size)
        client.shutdown()
        return [(offset, length) for offset, length, flags in found if flags & 1]

    def pull(
        self, extents: Extents, target: Path, progress: Callable[[int], None] = lambda copied: None
    ) -> int:
        """Copy these parts of the frozen disk over an image; returns the bytes copied."""
        client = nbd.NBD()
        client.connect_uri(self.uri("backup"))
        copied = 0
        try:
            with open(target, "r+b") as image:
                for offset, length in extents:
                    for start in range(offset, offset + length, CHUNK):
                        part = min(CHUNK, offset + length - start)
                        image.seek(start)
                        image.write(client.pread(part, start))
                        copied += part
                        progress(copied)
            client.shutdown()
        except nbd.Error as error:
            raise BackupFailed(error.string) from error
        return copied


def extents_of(client: Any, context: str, size: int) -> list[tuple[int, int, int]]:
    """All extents of a metadata context: offset, length, flags."""
    found: list[tuple[int, int, int]] = []

    def collect(name: str, offset: int, entries: list[int], _error: Any) -> int:
        if name == context:
            for length, flags in zip(entries[::2], entries[1::2]):
                found.append((offset, length, flags))
                offset += length
        return 0

    position = 0
    while position < size:
        client.block_status(min(size - position, 1 << 30), position, collect)
        position = found[-1][0] + found[-1][1]
    return found
