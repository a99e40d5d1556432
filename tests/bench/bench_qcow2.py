# SPDX-License-Identifier: MIT
"""qcow2 images: requests, and opening and closing a disk with many persistent bitmaps.

A row of requests is the time, and below it the daemon's CPU time, of one request; a number of them is
sent, each to another place, and the flush behind them is in it. Images lie in memory where
the programs are to be measured and not the disk under them; rows with "disk" and "direct" lie in
the folder for temporary files.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nbd
from client import run_client
from servers import CpuClock, Daemon, Pair
from table import Row, interleave, show, wanted

KIB = 1 << 10
MIB = 1 << 20
TIB = 1 << 40
ROUNDS = 5
GRANULARITY = 65536
TRIM_MAX = 1 << 30
SIZE = 256 * MIB
WRITES = 200  # between opening an image and closing it


@dataclass
class Case:
    """What the client does on which kind of image."""

    what: str
    kind: str  # of the image, see make_image()
    pattern: str
    block: int
    requests: int
    depth: int = 16
    where: str = "memory"


CASES = [
    Case("4 KiB random write, preallocated", "full", "randwrite", 4 * KIB, 30000),
    Case("64 KiB random write, preallocated", "full", "randwrite", 64 * KIB, 4000),
    Case("4 KiB random write, preallocation=metadata", "metadata", "randwrite", 4 * KIB, 30000),
    Case("4 KiB random write, empty", "empty", "randwrite", 4 * KIB, 20000),
    Case("64 KiB random write, empty", "empty", "randwrite", 64 * KIB, 4000),
    Case("4 KiB random read", "full", "randread", 4 * KIB, 40000),
    Case("64 KiB random read", "full", "randread", 64 * KIB, 8000),
    Case("1 MiB sequential read", "full", "read", MIB, 512, 8),
    Case("1 MiB sequential write, preallocated", "full", "write", MIB, 256, 8),
    Case("1 MiB sequential write, empty", "empty", "write", MIB, 256, 8),
    Case("1 MiB sequential read, scattered", "scattered", "read", MIB, 512, 8),
    Case("1 MiB sequential write, scattered", "scattered", "write", MIB, 256, 8),
    Case("disk 64 KiB random write, empty", "empty", "randwrite", 64 * KIB, 1500, 16, "disk"),
    Case("disk 1 MiB sequential read, scattered", "scattered", "read", MIB, 256, 1, "disk"),
    Case("direct 4 KiB random read", "full", "randread", 4 * KIB, 8000, 16, "direct"),
    Case("direct 1 MiB read, scattered, depth 1", "scattered", "read", MIB, 128, 1, "direct"),
    Case("direct 1 MiB read, scattered, depth 8", "scattered", "read", MIB, 256, 8, "direct"),
    Case("direct 64 KiB random write, empty", "empty", "randwrite", 64 * KIB, 1500, 16, "direct"),
]


def qemu_io(path: Path, commands: str) -> None:
    """Run commands, a line each."""
    subprocess.run(["qemu-io", str(path)], input=commands, text=True, check=True,
                   stdout=subprocess.DEVNULL)


def make_image(path: Path, kind: str) -> None:
    """An image of SIZE: 'empty'; 'metadata', with a place for everything; 'full' of data; or
    'scattered', full of data with hardly a cluster beside its neighbour."""
    path.unlink(missing_ok=True)
    extra = ["-o", "preallocation=metadata"] if kind == "metadata" else []
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *extra, str(path), str(SIZE)],
                   check=True)
    if kind == "full":
        qemu_io(path, f"write -P 1 0 {SIZE}\n")
    elif kind == "scattered":
        count = SIZE // (64 * KIB)
        qemu_io(path, "".join(f"write -P 1 {number * 2654435761 % count * 64}k 64k\n"
                              for number in range(count)))
    with path.open("rb") as file:
        os.fsync(file.fileno())


class Image:
    """A qcow2 image opened by one daemon, and exported."""

    def __init__(self, daemon: Daemon, path: Path, direct: bool = False):
        self.daemon, self.path = daemon, path
        daemon.qmp("blockdev-add", driver="qcow2", node_name="q", discard="unmap",
                   cache={"direct": direct}, file={"driver": "file", "filename": str(path),
                                                   "cache": {"direct": direct}})
        daemon.qmp("block-export-add", type="nbd", id="q", node_name="q", name="q", writable=True)

    def close(self) -> None:
        """Take it away."""
        self.daemon.qmp("block-export-del", id="q", mode="hard")
        self.daemon.wait_event("BLOCK_EXPORT_DELETED")
        self.daemon.qmp("blockdev-del", node_name="q")


def measure_case(pair: Pair, folder: Path, case: Case) -> list[Row]:
    """Two rows, time and CPU time, from the same runs. An image that grows is made anew for each."""
    used: dict[str, list[float]] = {pair.qemu.name: [], pair.merino.name: []}

    def sample(daemon: Daemon) -> Callable[[], float]:
        path = folder / f"{daemon.name}.qcow2"
        anew = case.kind in ("empty", "metadata")
        if not anew:
            make_image(path, case.kind)

        def once() -> float:
            if anew:
                make_image(path, case.kind)
            image = Image(daemon, path, case.where == "direct")
            clock = CpuClock(daemon.process.pid)
            done = run_client(daemon, "q", "load", pattern=case.pattern, block=case.block,
                              depth=case.depth, requests=case.requests)
            used[daemon.name].append(clock.seconds() / done.count)
            image.close()
            return done.seconds / done.count

        return once

    elapsed = interleave(ROUNDS, sample(pair.qemu), sample(pair.merino))
    elapsed.what = case.what
    for daemon in (pair.qemu, pair.merino):
        (folder / f"{daemon.name}.qcow2").unlink()
    return [elapsed, Row("   CPU of the daemon", used[pair.qemu.name], used[pair.merino.name])]


def measure_huge(program: str, what: str) -> list[Row]:
    """Reads all over a disk whose L2 tables are four times the cache: time, and memory afterwards."""
    memory: dict[str, list[float]] = {"qemu": [], "merino": []}
    left: dict[str, list[float]] = {"qemu": [], "merino": []}
    with Pair(program) as pair:
        path = pair.folder / "huge.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata",
                        str(path), str(TIB)], check=True)

        def sample(daemon: Daemon) -> float:
            before = daemon.memory()
            image = Image(daemon, path)
            done = run_client(daemon, "q", "load", pattern="randread", block=4096, depth=16,
                              requests=40000)
            memory[daemon.name].append((daemon.memory() - before) / KIB)
            image.close()
            left[daemon.name].append(max(daemon.memory() - before, 4096) / KIB)
            return done.seconds / done.count

        row = interleave(3, lambda: sample(pair.qemu), lambda: sample(pair.merino))
    row.what = what
    return [row, Row("   memory", memory["qemu"], memory["merino"], "KiB"),
            Row("   memory when it is closed", left["qemu"], left["merino"], "KiB")]


# --- persistent bitmaps ---


def make_bitmaps(daemon: Daemon, path: Path, count: int, kind: str) -> None:
    """A 1 TiB image with so many bitmaps: 'empty', '1 %' or 'full'. Discards make bits dirty and
    leave the image small."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(TIB)], check=True)
    image = Image(daemon, path)
    for number in range(count):
        daemon.qmp("block-dirty-bitmap-add", node="q", name=f"b{number}", persistent=True,
                   granularity=GRANULARITY)
    client = nbd.NBD()
    client.connect_uri(daemon.uri("q"))
    step, length = {"empty": (0, 0), "1 %": (100 * GRANULARITY, GRANULARITY),
                    "full": (TRIM_MAX, TRIM_MAX)}[kind]
    for offset in range(0, TIB, step) if step else []:
        client.aio_trim(min(length, TIB - offset), offset, lambda _error: 1)
        while client.aio_in_flight() > 63:
            client.poll(-1)
    while client.aio_in_flight() > 0:
        client.poll(-1)
    client.shutdown()
    image.close()


def open_and_close(daemon: Daemon, path: Path, memory: list[float]) -> float:
    """Seconds to open and close an image; and the memory it took, in KiB, while it was open."""
    before = daemon.memory()
    start = time.perf_counter()
    daemon.qmp("blockdev-add", driver="qcow2", node_name="q",
               file={"driver": "file", "filename": str(path)})
    opened = time.perf_counter() - start
    memory.append(max(daemon.memory() - before, 4096) / 1024)
    start = time.perf_counter()
    daemon.qmp("blockdev-del", node_name="q")
    return opened + time.perf_counter() - start


def write_between(daemon: Daemon, path: Path, used: dict[str, list[float]]) -> float:
    """Seconds to open an image, to write to WRITES random places, always others, and to close it."""
    first = WRITES * len(used[f"{daemon.name} cpu"])
    clock = CpuClock(daemon.process.pid)
    start = time.perf_counter()
    image = Image(daemon, path)
    opened = time.perf_counter() - start
    done = run_client(daemon, "q", "load", pattern="randwrite", block=4 * KIB, depth=16,
                      requests=WRITES, first=first)
    start = time.perf_counter()
    image.close()
    closed = time.perf_counter() - start
    used[f"{daemon.name} cpu"].append(clock.seconds())
    used[f"{daemon.name} close"].append(closed)
    return opened + done.seconds + closed


def copies(pair: Pair, folder: Path, count: int, kind: str) -> dict[str, Path]:
    """One image for each daemon, alike."""
    original = folder / "bitmaps.qcow2"
    make_bitmaps(pair.merino, original, count, kind)
    paths = {}
    for name in (pair.qemu.name, pair.merino.name):
        paths[name] = folder / f"{name}-bitmaps.qcow2"
        subprocess.run(["cp", "--sparse=always", str(original), str(paths[name])], check=True)
        subprocess.run(["sync", str(paths[name])], check=True)
    original.unlink()
    return paths


def bitmap_rows(count: int, kind: str, pair: Pair) -> list[Row]:
    """Time and memory of one kind of image."""
    memory: dict[str, list[float]] = {"qemu": [], "merino": []}
    paths = copies(pair, pair.folder, count, kind)
    row = interleave(
        3,
        lambda: open_and_close(pair.qemu, paths["qemu"], memory["qemu"]),
        lambda: open_and_close(pair.merino, paths["merino"], memory["merino"]))
    row.what, row.unit = f"{count} bitmaps, {kind}: open and close", "ms"
    for path in paths.values():
        path.unlink()
    return [row, Row("   memory while open", memory["qemu"], memory["merino"], "KiB")]


def bitmap_write_rows(count: int, what: str, pair: Pair, folder: Path) -> list[Row]:
    """The same with writes between, after which each of the bitmaps is stored."""
    used: dict[str, list[float]] = {f"{side} {of}": [] for side in ("qemu", "merino")
                                    for of in ("cpu", "close")}
    paths = copies(pair, folder, count, "1 %")
    row = interleave(ROUNDS, lambda: write_between(pair.qemu, paths["qemu"], used),
                     lambda: write_between(pair.merino, paths["merino"], used))
    row.what, row.unit = what, "ms"
    return [row, *(Row(f"   {name}", used[f"qemu {of}"], used[f"merino {of}"], "ms")
                   for of, name in (("close", "closing alone"), ("cpu", "CPU of the daemon")))]


def run(program: str) -> None:
    """All that is wanted."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    rows = []
    for case in CASES:
        if wanted(case.what):
            with Pair(program) as pair, tempfile.TemporaryDirectory(
                    dir=memory if case.where == "memory" else None) as folder:
                rows += measure_case(pair, Path(folder), case)
    if wanted("1 TiB disk, 4 KiB random read"):
        rows += measure_huge(program, "1 TiB disk, 4 KiB random read")
    show("qcow2 requests, time of one", rows)
    rows = []
    for count in (1, 16, 64):
        for kind in ("empty", "1 %", "full"):
            if wanted(f"{count} bitmaps, {kind}: open and close"):
                with Pair(program) as pair:
                    rows += bitmap_rows(count, kind, pair)
        for where, name in ((memory, ""), (None, "disk ")):
            what = f"{name}{count} bitmaps, 1 %: with {WRITES} writes"
            if wanted(what):
                with Pair(program) as pair, tempfile.TemporaryDirectory(dir=where) as folder:
                    rows += bitmap_write_rows(count, what, pair, Path(folder))
    show("qcow2 of 1 TiB with persistent bitmaps", rows)
