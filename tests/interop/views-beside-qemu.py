#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Frozen views beside qemu-storage-daemon, while their target fails or takes too long.

    views-beside-qemu.py DAEMON

The same guests write on both through copy-before-write, several at the same time, with blkdebug or
throttle under the target; what the guests are told, what the view gives and what the disk holds is
compared. Prints TAP; skips where qemu-storage-daemon is missing.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import nbd
from nbd_daemon import Daemon, Json, Skip, run_tests, running

QEMU = "qemu-storage-daemon"
CLUSTER = 65536
SIZE = 64 * CLUSTER
WRITERS = 8

DAEMON = ""

Outcomes = list[Any]


class View:
    """A frozen disk whose bytes are the number of their cluster, its guest and its view."""

    def __init__(self, daemon: Daemon, target: Json, **options: Any):
        for name in ("disk", "target"):
            with open(daemon.folder / name, "wb") as image:
                for cluster in range(SIZE // CLUSTER):
                    image.write(bytes([cluster if name == "disk" else 0xEE]) * CLUSTER)
        daemon.command("blockdev-add", driver="file", node_name="disk",
                       filename=str(daemon.folder / "disk"), discard="unmap")
        file = {"driver": "file", "filename": str(daemon.folder / "target")}
        child = "image" if target["driver"] == "blkdebug" else "file"
        daemon.command("blockdev-add", driver="copy-before-write", node_name="cbw", file="disk",
                       target={**target, child: file}, **options)
        daemon.command("blockdev-add", driver="snapshot-access", node_name="view", file="cbw")
        daemon.command("nbd-server-start", addr={"type": "unix", "data": {"path": daemon.sock}})
        self.guest = self._export(daemon, "cbw")
        self.reader = self._export(daemon, "view")

    @staticmethod
    def _export(daemon: Daemon, node: str) -> nbd.NBD:
        daemon.command("block-export-add", type="nbd", id=node, node_name=node, name=node,
                       writable=node == "cbw")
        client = nbd.NBD()
        client.connect_uri(f"nbd+unix:///{node}?socket={daemon.sock}")
        return client

    def write(self, clusters: list[int]) -> Outcomes:
        """Write a byte into each, all at the same time; what each was told."""
        told: Outcomes = [None] * len(clusters)

        def note(index: int, error: Any) -> int:
            told[index] = error.value  # of a C int
            return 1

        for index, cluster in enumerate(clusters):
            self.guest.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"\xdd")),
                                  cluster * CLUSTER + 5, partial(note, index))
        while None in told:
            self.guest.poll(-1)
        return told

    def write_range(self, cluster: int, count: int) -> str:
        """One large write; what it was told."""
        return answer(lambda: self.guest.pwrite(bytes(count * CLUSTER), cluster * CLUSTER))

    def look(self, clusters: list[int]) -> Outcomes:
        """The view and the disk: first and sixth byte of each."""
        found: Outcomes = []
        for cluster in clusters:
            for client in (self.reader, self.guest):
                found.append(answer(partial(first_bytes, client, cluster * CLUSTER)))
        return found

    def end(self) -> None:
        """The clients leave."""
        self.guest.shutdown()
        self.reader.shutdown()


def first_bytes(client: nbd.NBD, offset: int) -> str:
    """The first and the sixth byte there."""
    data: bytes = client.pread(6, offset)
    return data[::5].hex()


def answer(call: Callable[[], Any]) -> str:
    """What a request gave, or its error. NBD has no word for EACCES and ETIMEDOUT, for which QEMU
    says EINVAL and Merino EPERM and EIO: these count as the same."""
    try:
        return str(call())
    except nbd.Error as error:
        return "refused" if error.errno in ("EINVAL", "EPERM", "EIO") else str(error.errno)


def failing(times: str) -> Json:
    """A target that takes no writes; `times`: "once" or "always"."""
    rule: Json = {"event": "none", "iotype": "write", "errno": 28, "once": times == "once"}
    return {"driver": "blkdebug", "inject-error": [rule]}


def failing_at(cluster: int) -> Json:
    """A target that has one bad place."""
    rule: Json = {"event": "none", "iotype": "write", "errno": 5, "sector": cluster * CLUSTER // 512}
    return {"driver": "blkdebug", "inject-error": [rule]}


def one_after_the_other(view: View) -> Outcomes:
    """Single writes, the first one twice."""
    clusters = [3, 3, 4, 60]
    return [(view.write([cluster]), view.look([cluster, 10])) for cluster in clusters]


def at_the_same_time(view: View) -> Outcomes:
    """Eight guests at a time, on clusters far from one another, then once more."""
    clusters = [2 * i for i in range(WRITERS)]
    return [(view.write(clusters), view.look(clusters + [11])) for _ in range(2)]


def too_slow(view: View) -> Outcomes:
    """A write that fills the target's bucket, then one that would wait for seconds."""
    return [view.write_range(0, 16), view.look([0, 15]), view.write_range(20, 4),
            view.look([0, 20, 40])]


def compare(target: Callable[[], Json], options: Json, story: Callable[[View], Outcomes]) -> None:
    """The story is the same on both."""
    if not shutil.which(QEMU):
        raise Skip(f"{QEMU} is not installed")
    told = []
    for program in (DAEMON, QEMU):
        with running(program, ["--object", "throttle-group,id=slow,limits.bps-write=262144"],
                     quiet=False) as daemon:
            view = View(daemon, target(), **options)
            told.append(story(view))
            view.end()
    assert told[0] == told[1], f"\nMerino {told[0]}\nQEMU   {told[1]}"


def main() -> int:
    """Every story with each of the ways out."""
    global DAEMON  # pylint: disable=global-statement
    DAEMON = os.path.abspath(sys.argv[1])
    tests: list[tuple[str, Callable[[], None]]] = []
    for way in ("break-guest-write", "break-snapshot"):
        options: Json = {"on-cbw-error": way}
        for times in ("once", "always"):
            target = partial(failing, times)
            tests.append((f"{way}: the target fails {times}, one write after the other",
                          partial(compare, target, options, one_after_the_other)))
        tests.append((f"{way}: the target fails always, eight writes at a time",
                      partial(compare, partial(failing, "always"), options, at_the_same_time)))
        tests.append((f"{way}: the target has a bad place, one write after the other",
                      partial(compare, partial(failing_at, 4), options, one_after_the_other)))
        if way == "break-guest-write":
            tests.append((f"{way}: the target has a bad place, eight writes at a time",
                          partial(compare, partial(failing_at, 4), options, at_the_same_time)))
        slow = partial(dict, driver="throttle", **{"throttle-group": "slow"})
        tests.append((f"{way}: the target takes too long",
                      partial(compare, slow, {**options, "cbw-timeout": 1}, too_slow)))
    return run_tests(tests)


if __name__ == "__main__":
    sys.exit(main())
