# SPDX-License-Identifier: MIT
"""Dirty bitmaps in the daemon: their extents over NBD, what marking costs a write, their memory."""

import subprocess
from functools import partial
from statistics import median

from client import command, run_client
from servers import CpuClock, Daemon, Pair
from table import Row, interleave, show, wanted

MIB = 1 << 20
TIB = 1 << 40
GRANULARITY = 65536
EXTENT_ROUNDS = 9
ZERO_MAX = 1 << 31

# Contents of a bitmap of a 1 TiB disk: granularity, and what the client's mark is told.
EXTENTS: list[tuple[str, str, int, dict[str, str | int] | None]] = [
    ("nothing dirty", "clean", GRANULARITY, None),
    ("all dirty", "full", GRANULARITY, {"every": 0}),
    ("1 % dirty, at random", "one", GRANULARITY, {"pattern": "random", "every": 100}),
    ("4 M extents, taking turns", "turns", 4 * GRANULARITY, {"every": 2}),
]

MARK_BITMAPS = 64
MARK_SECONDS = 0.4
MARK_ROUNDS = 11

MEMORY_BITMAPS = 32


def dirty(daemon: Daemon, export: str, granularity: int, marks: dict[str, str | int]) -> None:
    """Write what makes the bitmap of an export so."""
    if marks["every"]:
        run_client(daemon, export, "mark", block=granularity, **marks)
    else:
        run_client(daemon, export, "zero", block=ZERO_MAX)


# --- extents ---


def read_extents(daemon: Daemon, export: str, extended: bool) -> float:
    """Seconds to read all extents of the bitmap."""
    return run_client(daemon, export, "extents", context="qemu:dirty-bitmap:b",
                      extended=extended).seconds


def extents_rows(pair: Pair) -> list[Row]:
    """QEMU 7.2 has no extended headers: what it has stands beside both of ours."""
    rows = []
    for what, name, granularity, marks in EXTENTS:
        if not wanted(what):
            continue
        pair.both("blockdev-add", driver="null-co", node_name=name, size=TIB)
        pair.both("block-dirty-bitmap-add", node=name, name="b", granularity=granularity)
        for daemon in (pair.qemu, pair.merino):
            daemon.qmp("block-export-add", type="nbd", id=name, node_name=name, name=name,
                       writable=True, bitmaps=["b"])
            if marks:
                dirty(daemon, name, granularity, marks)
        for label, extended in ((what, True), ("   with structured replies", False)):
            row = interleave(EXTENT_ROUNDS, partial(read_extents, pair.qemu, name, False),
                             partial(read_extents, pair.merino, name, extended))
            row.what, row.unit = label, "ms"
            rows.append(row)
        pair.both("block-export-del", id=name, mode="hard")
        pair.both("blockdev-del", node_name=name)
    return rows


# --- marking ---


def write_cost(daemon: Daemon, export: str) -> float:
    """CPU seconds of the daemon of one 4 KiB write."""
    clock = CpuClock(daemon.process.pid)
    done = run_client(daemon, export, "load", pattern="randwrite", block=4096, depth=32,
                      seconds=MARK_SECONDS)
    return clock.seconds() / done.count


def marking(pair: Pair) -> None:
    """A write's cost with no bitmap and with many, and how the two compare on each side."""
    names = {0: "none", MARK_BITMAPS: "many"}
    for count, name in names.items():
        pair.both("blockdev-add", driver="null-co", node_name=name, size=TIB)
        pair.both("block-export-add", type="nbd", id=name, node_name=name, name=name,
                  writable=True)
        for i in range(count):
            pair.both("block-dirty-bitmap-add", node=name, name=f"b{i}", granularity=GRANULARITY)
    rows = {count: interleave(0, lambda: 0.0, lambda: 0.0) for count in names}
    for _ in range(MARK_ROUNDS):
        for count, name in names.items():
            rows[count].qemu.append(write_cost(pair.qemu, name))
            rows[count].merino.append(write_cost(pair.merino, name))
    for count, row in rows.items():
        row.what = f"{count} enabled bitmaps"
    show("A 4 KiB write on null-co, CPU of the daemon", list(rows.values()))
    for side in ("qemu", "merino"):
        ratios = sorted(many / none for many, none in zip(getattr(rows[MARK_BITMAPS], side),
                                                          getattr(rows[0], side)))
        print(f"   {MARK_BITMAPS} over 0, {side + ':':<28}{median(ratios):.3f} "
              f"({ratios[0]:.3f} .. {ratios[-1]:.3f})")


# --- memory ---


class Memory:
    """KiB that bitmaps add to a fresh daemon, as they go through their life."""

    def __init__(self, daemon: Daemon):
        self._daemon = daemon
        self.steps: list[tuple[str, float]] = [("the daemon at its start", daemon.memory() / 1024)]
        daemon.qmp("blockdev-add", driver="null-co", node_name="disk", size=TIB)
        daemon.qmp("block-export-add", type="nbd", id="disk", node_name="disk", name="disk",
                   writable=True)
        run_client(daemon, "disk", "load", seconds=0.1)
        self._before = daemon.memory()

    def note(self, what: str) -> None:
        """What one bitmap comes to now."""
        added = self._daemon.memory() - self._before
        self.steps.append((what, added / MEMORY_BITMAPS / 1024))

    def each(self, verb: str, **arguments: int) -> None:
        """The same command for all bitmaps."""
        for i in range(MEMORY_BITMAPS):
            self._daemon.qmp(f"block-dirty-bitmap-{verb}", node="disk", name=f"b{i}", **arguments)

    def live(self) -> None:
        """From empty through full and scattered to empty again."""
        self.each("add", granularity=GRANULARITY)
        self.note("a bitmap, empty")
        run_client(self._daemon, "disk", "zero", block=ZERO_MAX)
        self._daemon.qmp("query-named-block-nodes")
        self.note("a bitmap, full")
        self.each("clear")
        self.note("a bitmap, filled and cleared")
        run_client(self._daemon, "disk", "mark", pattern="random", every=1000, block=GRANULARITY)
        self._daemon.qmp("query-named-block-nodes")
        self.note("a bitmap, 0.1 % at random")
        self.each("clear")
        self.note("a bitmap, scattered and cleared")


def memory_rows(program: str) -> list[Row]:
    """In daemons of their own."""
    with Pair(program) as pair:
        lives = [Memory(pair.qemu), Memory(pair.merino)]
        for life in lives:
            life.live()
    return [Row(what, [theirs], [ours], "KiB")
            for (what, theirs), (_, ours) in zip(lives[0].steps, lives[1].steps)]


# --- fairness ---


def beside_a_flood(daemon: Daemon) -> float:
    """Seconds of the median read of a quiet client while another asks for all it can get."""
    flood = subprocess.Popen(
        command(daemon, "flood", "load", pattern="read", block=MIB, depth=32, seconds=2),
        stdout=subprocess.DEVNULL)
    try:
        return run_client(daemon, "flood", "load", block=4096, depth=1, seconds=1).median_us / 1e6
    finally:
        flood.terminate()
        flood.wait(30)


def fairness_row(pair: Pair) -> Row:
    """Two clients of one export."""
    pair.both("blockdev-add", driver="null-co", node_name="flood", size=TIB)
    pair.both("block-export-add", type="nbd", id="flood", node_name="flood", name="flood",
              writable=True)
    row = interleave(3, lambda: beside_a_flood(pair.qemu), lambda: beside_a_flood(pair.merino))
    row.what = "4 KiB read beside a flood of 1 MiB"
    return row


def run(program: str) -> None:
    """All of it."""
    with Pair(program) as pair:
        show("NBD extents of a dirty bitmap, 1 TiB, with extended headers where there are",
             extents_rows(pair))
        if wanted("marking"):
            marking(pair)
        if wanted("fairness"):
            show("Fairness between clients", [fairness_row(pair)])
    if wanted("memory"):
        show("Memory: 1 TiB disk, 64 KiB granularity", memory_rows(program))
