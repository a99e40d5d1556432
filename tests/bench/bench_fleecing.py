# SPDX-License-Identifier: MIT
"""What a frozen view costs the guest: its first writes while the view is kept.

Each run freezes a new view over a disk, with an empty target. Each write is 4 KiB, and the first to
its 64 KiB, in random order. The files lie in memory (/dev/shm), so that the programs are measured
and not the file system; then in the folder for temporary files, where what the guest's write itself
costs is added on both sides.
"""

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client import command, run_client
from servers import CpuClock, Daemon, Pair
from table import Row, show

MIB = 1 << 20
CLUSTER = 65536
WRITE = 4096
DISK_SIZE = 512 * MIB
CLUSTERS = DISK_SIZE // CLUSTER
ROUNDS = 5
READER_SECONDS = 20
READER_AT_WORK = 1000  # requests after which it is
THROTTLE = 20 * 1000 * 1000


@dataclass
class Case:
    """What is done to one view."""

    what: str
    writes: int  # how many
    depth: int
    reader: bool = False  # a client pulls the view meanwhile
    throttled: bool = False
    staging: int = 0  # bytes; ours alone knows how
    median: bool = False  # not what 1 % exceed


CASES = [
    Case("depth 16", CLUSTERS, 16),
    Case("depth 16, staged", CLUSTERS, 16, staging=16 * MIB),
    Case("depth 1 beside a reader", 1024, 1, reader=True, median=True),
    Case("target 20 MB/s, staged", 1024, 16, throttled=True, staging=16 * MIB),
    Case("target 20 MB/s, buffer too small", 1024, 16, throttled=True, staging=MIB),
]

ON_DISK = [Case("depth 16, files on disk", CLUSTERS, 16)]


class FrozenDisk:
    """A disk behind copy-before-write, both exported, from its freeze to its end."""

    def __init__(self, daemon: Daemon, folder: Path, case: Case):
        self.daemon = daemon
        self._target = folder / f"{daemon.name}-target.raw"
        with self._target.open("wb") as file:
            file.truncate(DISK_SIZE)
        self._nodes = ["target"]
        daemon.qmp("blockdev-add", driver="file", node_name="target", filename=str(self._target))
        if case.throttled:
            self._add("throttle", "slow", throttle_group="slow", file="target")
        options: dict[str, Any] = {"on_cbw_error": "break-guest-write"}
        if case.staging and daemon.name == "merino":
            options["staging_size"] = case.staging
        self._add("copy-before-write", "cbw", file="disk", target=self._nodes[-1], **options)
        self._add("snapshot-access", "view", file="cbw")
        for name, node, writable in (("guest", "cbw", True), ("view", "view", False)):
            daemon.qmp("block-export-add", type="nbd", id=name, node_name=node, name=name,
                       writable=writable)

    def _add(self, driver: str, name: str, **options: Any) -> None:
        self.daemon.qmp("blockdev-add", driver=driver, node_name=name, **options)
        self._nodes.append(name)

    def end(self) -> None:
        """Take everything away."""
        for name in ("guest", "view"):
            self.daemon.qmp("block-export-del", id=name, mode="hard")
        while self.daemon.qmp("query-block-exports"):
            pass
        for node in reversed(self._nodes):
            self.daemon.qmp("blockdev-del", node_name=node)
        self._target.unlink()


def start_reader(daemon: Daemon) -> "subprocess.Popen[bytes]":
    """A client that pulls the view, and is at it."""
    words = command(daemon, "view", "load", pattern="read", block=256 << 10, depth=16,
                    seconds=READER_SECONDS, announce=READER_AT_WORK)
    reader = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert reader.stdout and reader.stdout.readline() == b"at work\n"
    return reader


Sample = tuple[float, float, float]


def first_writes(disk: FrozenDisk, case: Case) -> Sample:
    """Seconds from one write's end to the next, below which so many percent of them stayed, and of
    the daemon's CPU for one."""
    clock = CpuClock(disk.daemon.process.pid)
    done = run_client(disk.daemon, "guest", "load", pattern="randwrite", block=WRITE,
                      every=CLUSTER // WRITE, requests=case.writes, depth=case.depth,
                      **{"no-flush": True})
    used = clock.seconds()
    latency = (done.median_us if case.median else done.p99_us) / 1e6
    return done.seconds / done.count, latency, used / done.count


def sample(daemon: Daemon, folder: Path, case: Case) -> Sample:
    """One run of a case."""
    disk = FrozenDisk(daemon, folder, case)
    reader = None
    try:
        if case.reader:
            reader = start_reader(daemon)
        return first_writes(disk, case)
    finally:
        disk.end()
        if reader:
            reader.terminate()
            reader.wait()


def measure(pair: Pair, folder: Path, case: Case, rounds: int) -> list[Row]:
    """The rows of the same runs; a reader's CPU time would drown the guest's."""
    samples: dict[str, list[Sample]] = {"qemu": [], "merino": []}
    for number in range(rounds):
        order = [pair.qemu, pair.merino]
        for daemon in reversed(order) if number % 2 else order:
            samples[daemon.name].append(sample(daemon, folder, case))
    words = [f"{case.what}: time of one", f"   {50 if case.median else 99} % take less"]
    if case.writes == CLUSTERS:
        words.append("   CPU of the daemon")
    return [Row(what, [s[i] for s in samples["qemu"]], [s[i] for s in samples["merino"]])
            for i, what in enumerate(words)]


def prepare(pair: Pair, folder: Path) -> None:
    """A disk for each, and a slow throttle group."""
    for daemon in (pair.qemu, pair.merino):
        path = folder / f"{daemon.name}.raw"
        with path.open("wb") as file:
            for _ in range(DISK_SIZE // MIB):
                file.write(os.urandom(MIB))
        daemon.qmp("blockdev-add", driver="file", node_name="disk", filename=str(path))
        daemon.qmp("object-add", qom_type="throttle-group", id="slow",
                   limits={"bps-write": THROTTLE})


def measure_in(parent: str | None, program: str, cases: list[Case]) -> list[Row]:
    """All of some cases, with files in a folder of their own in `parent`."""
    # Clients that are stopped in the middle make QEMU talk.
    with Pair(program, quiet=True) as pair, tempfile.TemporaryDirectory(dir=parent) as name:
        folder = Path(name)
        prepare(pair, folder)
        return [row for case in cases for row in measure(pair, folder, case, ROUNDS)]


def run(program: str) -> None:
    """All of it."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    rows = measure_in(memory, program, CASES) + measure_in(None, program, ON_DISK)
    show("First writes of 4 KiB while a frozen view is kept", rows)
