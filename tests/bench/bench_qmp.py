# SPDX-License-Identifier: MIT
"""Merging bitmaps through QMP: two bitmaps of a 1 TiB disk at 64 KiB, by their contents.

A merge's cost is what its command takes beyond a command that does nothing. Where bitmaps share pages
until they differ, a merge into a fresh copy also pays for the copying that was put off; so merges are
measured both into a bitmap with pages of its own and into a fresh copy.
"""

import random
from statistics import median

import nbd
from servers import Daemon, Pair
from table import Row, interleave, show

TIB = 1 << 40
GRANULARITY = 65536
BITS = TIB // GRANULARITY
NOTHING = Daemon.message("query-block-exports")


def fill(daemon: Daemon, node: str, bits: list[int]) -> None:
    """Make bits dirty with small writes, many in flight."""
    export = f"fill-{node}"
    daemon.qmp("block-export-add", type="nbd", id=export, node_name=node, name=export, writable=True)
    client = nbd.NBD()
    client.connect_uri(daemon.uri(export))
    buffer = nbd.Buffer.from_bytearray(bytearray(512))

    def retire(_error: object) -> int:
        return 1

    for bit in bits:
        client.aio_pwrite(buffer, bit * GRANULARITY, retire)
        while client.aio_in_flight() > 63:
            client.poll(-1)
    while client.aio_in_flight() > 0:
        client.poll(-1)
    client.shutdown()
    daemon.qmp("block-export-del", id=export, mode="hard")


def fill_all(daemon: Daemon, node: str, size: int) -> None:
    """Make every bit dirty."""
    export = f"fill-{node}"
    daemon.qmp("block-export-add", type="nbd", id=export, node_name=node, name=export, writable=True)
    client = nbd.NBD()
    client.connect_uri(daemon.uri(export))
    for offset in range(0, size, 1 << 31):
        client.zero(min(1 << 31, size - offset), offset)
    client.shutdown()
    daemon.qmp("block-export-del", id=export, mode="hard")


def prepare(pair: Pair, name: str, size: int, share: float | None) -> None:
    """A disk with three disabled bitmaps of that share of dirty bits (None: all dirty)."""
    chance = random.Random(7)
    pair.both("blockdev-add", driver="null-co", node_name=name, size=size, read_zeroes=True)
    for bitmap in ("source", "target", "other"):
        pair.both(
            "block-dirty-bitmap-add", node=name, name=bitmap, granularity=GRANULARITY
        )
        bits = size // GRANULARITY
        chosen = chance.sample(range(bits), int(bits * share)) if share else []
        for daemon in (pair.qemu, pair.merino):
            if share is None:
                fill_all(daemon, name, size)
            else:
                fill(daemon, name, chosen)
        pair.both("block-dirty-bitmap-disable", node=name, name=bitmap)


def measure(pair: Pair, name: str, label: str, before: list[str], rounds: int = 21) -> Row:
    """The merge of source into a bitmap that has got `before`."""

    def once(daemon: Daemon) -> float:
        daemon.qmp("block-dirty-bitmap-add", node=name, name="work", granularity=GRANULARITY,
                   disabled=True)
        daemon.qmp("block-dirty-bitmap-merge", node=name, target="work", bitmaps=before)
        empty = median(daemon.send(NOTHING)[1] for _ in range(9))
        merge = Daemon.message("block-dirty-bitmap-merge", node=name, target="work",
                               bitmaps=["source"])
        took = daemon.send(merge)[1] - empty
        daemon.qmp("block-dirty-bitmap-remove", node=name, name="work")
        return max(took, 1e-6)

    row = interleave(rounds, lambda: once(pair.qemu), lambda: once(pair.merino))
    row.what = label
    return row


def run(daemon: str) -> None:
    """Prepare, measure, print."""
    contents: list[tuple[str, str, int, float | None]] = [
        ("full", "merge, 1 TiB, full + full", TIB, None),
        ("half", "merge, 32 GiB, random 50 %", TIB // 32, 0.5),
        ("one", "merge, 1 TiB, random 1 %", TIB, 0.01),
        ("empty", "merge, 1 TiB, empty", TIB, 0.0),
    ]
    with Pair(daemon) as pair:
        nothing = interleave(
            501, lambda: pair.qemu.send(NOTHING)[1], lambda: pair.merino.send(NOTHING)[1]
        )
        nothing.what = "a command that does nothing"
        rows = [nothing]
        for name, label, size, share in contents:
            prepare(pair, name, size, share)
            rows.append(measure(pair, name, label, ["target", "other"]))
            if share:
                rows.append(measure(pair, name, label + ", fresh copy", ["target"]))
        show("Merging two bitmaps through QMP (64 KiB granularity)", rows)
