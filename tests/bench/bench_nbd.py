# SPDX-License-Identifier: MIT
"""The NBD data path: requests by fio, and the extents of a dirty bitmap of a 1 TiB disk.

A row is the time, or the daemon's CPU time, of one request. The file is in the page cache before.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import nbd
from servers import Daemon, Pair, process_cpu_seconds
from table import Row, interleave, show

MIB = 1 << 20
TIB = 1 << 40
FILE_SIZE = 256 * MIB
SECONDS = 1
ROUNDS = 5
GRANULARITY = 65536

# What fio does, on which node.
CASES = [
    ("4 KiB random read, depth 32", "file", "randread", "4k", 32),
    ("4 KiB random read, depth 1", "file", "randread", "4k", 1),
    ("4 KiB random write, depth 32", "file", "randwrite", "4k", 32),
    ("4 KiB random write, depth 1", "file", "randwrite", "4k", 1),
    ("1 MiB sequential read, depth 8", "file", "read", "1m", 8),
    ("1 MiB sequential write, depth 8", "file", "write", "1m", 8),
    ("4 KiB random read of null-co, depth 32", "null", "randread", "4k", 32),
]


def prepare(pair: Pair) -> None:
    """The same nodes and exports on both; each has a file of its own."""
    for daemon in (pair.qemu, pair.merino):
        path = pair.folder / f"{daemon.name}.raw"
        path.write_bytes(os.urandom(FILE_SIZE))
        daemon.qmp("blockdev-add", driver="file", node_name="file", filename=str(path))
        daemon.qmp("blockdev-add", driver="null-co", node_name="null", size=FILE_SIZE)
        for node in ("file", "null"):
            daemon.qmp("block-export-add", type="nbd", id=node, node_name=node, name=node,
                       writable=True)


class Nbdkit:
    """nbdkit serving a file, with what is asked of a Daemon here."""

    name = "nbdkit"

    def __init__(self, folder: Path, path: Path):
        self._socket = folder / "nbdkit.sock"
        pid_file = folder / "nbdkit.pid"
        self.process = subprocess.Popen(
            ["nbdkit", "--foreground", "--unix", str(self._socket), "--pidfile", str(pid_file),
             "file", str(path)])
        while not pid_file.exists() and self.process.poll() is None:
            os.sched_yield()

    def uri(self, _export: str) -> str:
        """Where NBD clients find the file."""
        return f"nbd+unix:///?socket={self._socket}"

    def cpu_seconds(self) -> float:
        """User and system time that the process has used."""
        return process_cpu_seconds(self.process)

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(30)


Server = Daemon | Nbdkit


def fio(daemon: Server, node: str, pattern: str, block: str, depth: int) -> tuple[float, float]:
    """Seconds, and CPU seconds of the daemon, of one request."""
    before = daemon.cpu_seconds()
    done = subprocess.run(
        ["fio", "--name=bench", "--ioengine=nbd", f"--uri={daemon.uri(node)}", f"--rw={pattern}",
         f"--bs={block}", f"--iodepth={depth}", f"--size={FILE_SIZE}", f"--runtime={SECONDS}",
         "--time_based", "--output-format=json"],
        check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    used = daemon.cpu_seconds() - before
    job = json.loads(done.stdout[done.stdout.index("\n{") :])["jobs"][0]
    requests = job["read"]["total_ios"] + job["write"]["total_ios"]
    return (job["read"]["iops"] + job["write"]["iops"]) ** -1, used / requests


def measure_case(other: Server, merino: Server, what: str, node: str, pattern: str, block: str,
                 depth: int) -> list[Row]:
    """Two rows: time and CPU time, from the same runs."""
    used: dict[str, list[float]] = {other.name: [], merino.name: []}

    def sample(daemon: Server) -> Callable[[], float]:
        def once() -> float:
            seconds, cpu = fio(daemon, node, pattern, block, depth)
            used[daemon.name].append(cpu)
            return seconds

        return once

    elapsed = interleave(ROUNDS, sample(other), sample(merino))
    elapsed.what = what
    return [elapsed, Row("   CPU of the daemon", used[other.name], used[merino.name])]


def extents_case(pair: Pair, what: str, name: str, step: int | None) -> Row:
    """Read a bitmap with a dirty cluster every `step` clusters (None: nowhere)."""
    pair.both("blockdev-add", driver="null-co", node_name=name, size=TIB)
    pair.both("block-dirty-bitmap-add", node=name, name="b", granularity=GRANULARITY)
    for daemon in (pair.qemu, pair.merino):
        daemon.qmp("block-export-add", type="nbd", id=name, node_name=name, name=name,
                   writable=True, bitmaps=["b"])
        client = nbd.NBD()
        client.connect_uri(daemon.uri(name))
        buffer = nbd.Buffer.from_bytearray(bytearray(512))
        for offset in range(0, TIB, step * GRANULARITY) if step else []:
            client.aio_pwrite(buffer, offset, lambda _error: 1)
            while client.aio_in_flight() > 63:
                client.poll(-1)
        while client.aio_in_flight() > 0:
            client.poll(-1)
        client.shutdown()
    row = interleave(ROUNDS, lambda: read_extents(pair.qemu, name),
                     lambda: read_extents(pair.merino, name))
    row.what, row.unit = what, "ms"
    pair.both("block-export-del", id=name, mode="hard")
    return row


def read_extents(daemon: Daemon, export: str) -> float:
    """Seconds to read all extents of the bitmap."""
    client = nbd.NBD()
    client.add_meta_context("qemu:dirty-bitmap:b")
    client.connect_uri(daemon.uri(export))
    offset = 0

    def note(_context: str, _offset: int, entries: list[int], _error: object) -> int:
        nonlocal offset
        offset += sum(entries[::2])
        return 0

    start = time.perf_counter()
    while offset < TIB:
        client.block_status(min(TIB - offset, 0xFFFF0000), offset, note)
    took = time.perf_counter() - start
    client.shutdown()
    return took


def beside_nbdkit(pair: Pair) -> list[Row]:
    """The cases on a file again."""
    nbdkit = Nbdkit(pair.folder, pair.folder / f"{pair.qemu.name}.raw")
    try:
        return [row for case in CASES if case[1] == "file"
                for row in measure_case(nbdkit, pair.merino, *case)]
    finally:
        nbdkit.close()


def run(program: str) -> None:
    """All of it."""
    with Pair(program) as pair:
        prepare(pair)
        rows = [row for case in CASES for row in measure_case(pair.qemu, pair.merino, *case)]
        show("NBD requests, time of one", rows)
        show("NBD requests beside nbdkit, time of one", beside_nbdkit(pair), "nbdkit")
        show("NBD extents of a dirty bitmap, 1 TiB / 64 KiB", [
            extents_case(pair, "nothing dirty", "clean", None),
            extents_case(pair, "a cluster in 100 dirty", "one-percent", 100),
        ])
