# SPDX-License-Identifier: MIT
"""qcow2 images: requests by fio, and opening and closing a disk with many persistent bitmaps.

A row of requests is the time, or the daemon's CPU time, of one request; the flush at the end is in
it. Images lie in the folder for temporary files.
"""

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nbd
from servers import Daemon, Pair
from table import Row, interleave, show

MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40
ROUNDS = 5
GRANULARITY = 65536
TRIM_MAX = 1 << 30


@dataclass
class Case:
    """What fio does on which kind of image."""

    what: str
    filled: bool  # the image is allocated before
    pattern: str
    block: int
    requests: int
    depth: int = 16


CASES = [
    Case("4 KiB random write, allocated", True, "randwrite", 4096, 20000),
    Case("64 KiB random write, allocated", True, "randwrite", 65536, 4000),
    Case("4 KiB random write, empty image", False, "randwrite", 4096, 8000),
    Case("64 KiB random write, empty image", False, "randwrite", 65536, 4000),
    Case("4 KiB random read", True, "randread", 4096, 20000),
    Case("1 MiB sequential read", True, "read", MIB, 512),
    Case("1 MiB sequential write, allocated", True, "write", MIB, 512),
    Case("1 MiB sequential write, empty image", False, "write", MIB, 512),
]
SIZE = 512 * MIB


def make_image(path: Path, filled: bool) -> None:
    """An image of SIZE; when it is to be filled, every cluster holds data."""
    path.unlink(missing_ok=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(SIZE)], check=True)
    if filled:
        subprocess.run(["qemu-io", "-c", f"write -P 1 0 {SIZE}", str(path)], check=True,
                       stdout=subprocess.DEVNULL)


class Image:
    """A qcow2 image opened by one daemon, and exported."""

    def __init__(self, daemon: Daemon, path: Path):
        self.daemon, self.path = daemon, path
        daemon.qmp("blockdev-add", driver="qcow2", node_name="q", discard="unmap",
                   file={"driver": "file", "filename": str(path)})
        daemon.qmp("block-export-add", type="nbd", id="q", node_name="q", name="q", writable=True)

    def close(self) -> None:
        """Take it away."""
        self.daemon.qmp("block-export-del", id="q", mode="hard")
        self.daemon.wait_event("BLOCK_EXPORT_DELETED")
        self.daemon.qmp("blockdev-del", node_name="q")


def fio(daemon: Daemon, case: Case) -> tuple[float, float]:
    """Seconds, and CPU seconds of the daemon, of one request."""
    before = daemon.cpu_seconds()
    done = subprocess.run(
        ["fio", "--name=bench", "--ioengine=nbd", f"--uri={daemon.uri('q')}",
         f"--rw={case.pattern}", f"--bs={case.block}", f"--iodepth={case.depth}",
         f"--size={SIZE}", f"--io_size={case.requests * case.block}", "--end_fsync=1",
         "--randrepeat=1", "--output-format=json"],
        check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    used = daemon.cpu_seconds() - before
    job = json.loads(done.stdout[done.stdout.index("\n{") :])["jobs"][0]
    return job["job_runtime"] / 1000 / case.requests, used / case.requests


def measure_case(pair: Pair, case: Case) -> list[Row]:
    """Two rows, time and CPU time, from the same runs; each on an image as new."""
    used: dict[str, list[float]] = {pair.qemu.name: [], pair.merino.name: []}

    def sample(daemon: Daemon) -> Callable[[], float]:
        path = pair.folder / f"{daemon.name}.qcow2"
        if case.filled:
            make_image(path, True)

        def once() -> float:
            if not case.filled:
                make_image(path, False)
            image = Image(daemon, path)
            seconds, cpu = fio(daemon, case)
            image.close()
            used[daemon.name].append(cpu)
            return seconds

        return once

    elapsed = interleave(ROUNDS, sample(pair.qemu), sample(pair.merino))
    elapsed.what = case.what
    for daemon in (pair.qemu, pair.merino):
        (pair.folder / f"{daemon.name}.qcow2").unlink()
    return [elapsed, Row("   CPU of the daemon", used[pair.qemu.name], used[pair.merino.name])]


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


def bitmap_rows(count: int, kind: str, pair: Pair) -> list[Row]:
    """Time and memory of one kind of image."""
    original = pair.folder / "bitmaps.qcow2"
    make_bitmaps(pair.merino, original, count, kind)
    memory: dict[str, list[float]] = {"qemu": [], "merino": []}
    paths = {}
    for name in memory:
        paths[name] = pair.folder / f"{name}-bitmaps.qcow2"
        shutil.copyfile(original, paths[name])
    row = interleave(
        3,
        lambda: open_and_close(pair.qemu, paths["qemu"], memory["qemu"]),
        lambda: open_and_close(pair.merino, paths["merino"], memory["merino"]))
    row.what, row.unit = f"{count} bitmaps, {kind}: open and close", "ms"
    for path in (original, *paths.values()):
        path.unlink()
    return [row, Row("   memory while open", memory["qemu"], memory["merino"], "KiB")]


def run(program: str) -> None:
    """All of it."""
    with Pair(program) as pair:
        show("qcow2 requests, time of one",
             [row for case in CASES for row in measure_case(pair, case)])
    rows = []
    for count in (1, 16, 64):
        for kind in ("empty", "1 %", "full"):
            with Pair(program) as pair:
                rows += bitmap_rows(count, kind, pair)
    show("qcow2 of 1 TiB with persistent bitmaps", rows)
