# SPDX-License-Identifier: MIT
"""The NBD server: requests on files and on nothing, beside QEMU's and nbdkit's.

The client is bench-nbd, which costs little, so that the servers are what is measured: with a client
that costs more than the server, all servers look alike. A row is the time of one request, and below
it the CPU time that the server spent on it. All servers serve the same files, which are in the page
cache and on the disk before: in what pieces a file lies in memory is a matter of luck, and more to a
write than the server is.
"""

import os
import select
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from client import run_client
from servers import CpuClock, Daemon, Pair, Server
from table import Row, interleave_all, show, wanted

MIB = 1 << 20
FILE_SIZE = 256 * MIB
SECONDS = 0.6
ROUNDS = 5
LATENCY_NS = 1000000


@dataclass
class Case:
    """What the client does, on which node."""

    what: str
    node: str
    pattern: str
    block: int
    depth: int


CASES = [
    Case("4 KiB random read, depth 32", "file", "randread", 4096, 32),
    Case("4 KiB random read, depth 1", "file", "randread", 4096, 1),
    Case("4 KiB random write, depth 32", "file", "randwrite", 4096, 32),
    Case("4 KiB random write, depth 1", "file", "randwrite", 4096, 1),
    Case("1 MiB sequential read, depth 8", "file", "read", MIB, 8),
    Case("1 MiB sequential write, depth 8", "file", "write", MIB, 8),
    Case("direct 4 KiB random read, depth 32", "direct", "randread", 4096, 32),
    Case("direct 4 KiB random read, depth 1", "direct", "randread", 4096, 1),
    Case("direct 4 KiB random write, depth 32", "direct", "randwrite", 4096, 32),
    Case("null-co 4 KiB random read, depth 32", "null", "randread", 4096, 32),
    Case("null-co 4 KiB random write, depth 32", "null", "randwrite", 4096, 32),
    Case("null-co of 1 ms, 64 reads in flight", "slow", "randread", 4096, 64),
]


def make_file(path: Path) -> None:
    """Random bytes, written back already."""
    with path.open("wb") as file:
        for _ in range(FILE_SIZE // MIB):
            file.write(os.urandom(MIB))
        file.flush()
        os.fsync(file.fileno())


def prepare(pair: Pair) -> None:
    """The same nodes and exports on both."""
    for node in ("file", "direct"):
        make_file(pair.folder / f"{node}.raw")
    for daemon in (pair.qemu, pair.merino):
        for node in ("file", "direct"):
            daemon.qmp("blockdev-add", driver="file", node_name=node, locking="off",
                       filename=str(pair.folder / f"{node}.raw"),
                       cache={"direct": node == "direct"})
        daemon.qmp("blockdev-add", driver="null-co", node_name="null", size=FILE_SIZE)
        daemon.qmp("blockdev-add", driver="null-co", node_name="slow", size=FILE_SIZE,
                   latency_ns=LATENCY_NS)
        for node in ("file", "direct", "null", "slow"):
            daemon.qmp("block-export-add", type="nbd", id=node, node_name=node, name=node,
                       writable=True)


class Nbdkit:
    """nbdkit serving a file, with what is asked of a Daemon here."""

    name = "nbdkit"

    def __init__(self, folder: Path):
        self.nbd_socket = folder / "nbdkit.sock"
        pid_file = folder / "nbdkit.pid"
        os.mkfifo(pid_file)
        ready = os.open(pid_file, os.O_RDONLY | os.O_NONBLOCK)
        path = folder / "file.raw"
        self.process = subprocess.Popen(
            ["nbdkit", "--foreground", "--unix", str(self.nbd_socket), "--pidfile", str(pid_file),
             "file", str(path)])
        # It writes its number when it listens.
        if not select.select([ready], [], [], 10)[0]:
            self.close()
            raise RuntimeError("nbdkit does not listen")
        os.close(ready)

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(30)


def load(server: Server, case: Case) -> tuple[float, float]:
    """Seconds, and CPU seconds of the server, of one request."""
    clock = CpuClock(server.process.pid)
    done = run_client(server, case.node if isinstance(server, Daemon) else "", "load",
                      pattern=case.pattern, block=case.block, depth=case.depth, seconds=SECONDS)
    return done.seconds / done.count, clock.seconds() / done.count


def measure(servers: Sequence[Server], case: Case) -> dict[str, tuple[list[float], list[float]]]:
    """Samples of time and CPU time by the server's name, taken in turns."""
    samples = interleave_all(ROUNDS, [partial(load, server, case) for server in servers])
    return {server.name: ([time for time, _ in taken], [cpu for _, cpu in taken])
            for server, taken in zip(servers, samples)}


def run(program: str) -> None:
    """All of it."""
    beside_qemu: list[Row] = []
    beside_nbdkit: list[Row] = []
    cases = [case for case in CASES if wanted(case.what)]
    if not cases:
        return
    with Pair(program) as pair:
        prepare(pair)
        nbdkit = Nbdkit(pair.folder)
        try:
            for case in cases:
                servers: list[Server] = [pair.qemu, pair.merino]
                if case.node == "file":
                    servers.append(nbdkit)
                samples = measure(servers, case)
                for other, rows in (("qemu", beside_qemu), ("nbdkit", beside_nbdkit)):
                    if other in samples:
                        rows.append(Row(case.what, samples[other][0], samples["merino"][0]))
                        rows.append(Row("   CPU of the server", samples[other][1],
                                        samples["merino"][1]))
        finally:
            nbdkit.close()
    show("NBD requests, time of one", beside_qemu)
    show("NBD requests beside nbdkit, time of one", beside_nbdkit, "nbdkit")
