#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""The main job, end to end: incremental backups of a disk that never stops changing.

A real ext4 image, made from a file tree, is served by merino-storage-daemon. Two guests write to
it over NBD all the while. Backups are taken from frozen views, pulled by NBD clients, restored,
and judged: each must be the disk at one instant, to the byte, with a sound file system.

Then the same on a qcow2 image, whose persistent bitmaps live through a restart of the daemon
between two backups.
"""

import argparse
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

# pylint: disable=wrong-import-position
from backup import Backup, BackupFailed, Disk
from picture import dirty_map, heading, message, note, paint, size
from qmp import Qmp
from verify import Verifier, copy_image

HERE = Path(__file__).resolve().parent
SOURCE_TREE = HERE.parent.parent
DISK_SIZE = 512 << 20
GUEST_FILE_SIZE = 64 << 20
FILES = 4  # that guests write to: one guest, one file
GUESTS = 2  # at a time
DEADLINE_SECONDS = 10  # for the daemon to come up


def make_disk(folder: Path) -> tuple[Path, list[Path]]:
    """An ext4 image of this source tree and the guests' big files; and each file's blocks."""
    tree = folder / "tree"
    ignored = shutil.ignore_patterns(".git", "build*", "__pycache__", ".mypy_cache", "demo-output")
    shutil.copytree(SOURCE_TREE, tree / "merino", ignore=ignored, symlinks=True)
    for identity in range(FILES):
        with open(tree / f"database{identity}", "wb") as file:
            page = bytes(range(256)) * 4096
            for _ in range(GUEST_FILE_SIZE // len(page)):
                file.write(page)
    image = folder / "first.img"
    with open(image, "wb") as file:
        file.truncate(DISK_SIZE)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(image)], check=True)
    shutil.rmtree(tree)
    lists = []
    for identity in range(FILES):
        command = ["debugfs", "-R", f"blocks /database{identity}", str(image)]
        listed = subprocess.run(command, capture_output=True, text=True, check=True)
        blocks = folder / f"guest{identity}.blocks"
        blocks.write_text(listed.stdout, encoding="ascii")
        lists.append(blocks)
    return image, lists


class Machine:
    """The daemon, its disk, and the guests that write to it."""

    disk: Disk

    def __init__(
        self, daemon: Path, folder: Path, seed: int, image: Path, driver: str, blocks: list[Path]
    ):
        self.folder = folder
        self._program, self._image, self._driver = daemon, image, driver
        self._blocks, self._seed = blocks, seed
        self._guests: list[subprocess.Popen[str]] = []
        self.logs: list[Path] = []

    def start(self) -> None:
        """Start the daemon and export the disk."""
        control, server = self.folder / "qmp.sock", self.folder / "nbd.sock"
        control.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(control))
            listening.listen()
            listening.settimeout(DEADLINE_SECONDS)
            self._daemon = subprocess.Popen(
                [str(self._program), "--chardev", f"socket,id=qmp,path={control}"]
                + ["--monitor", "chardev=qmp"]
            )
            try:
                self._set_up(Qmp(listening.accept()[0], show=message), server)
            except BaseException:
                self._daemon.kill()
                raise

    def _set_up(self, qmp: Qmp, server: Path) -> None:
        self.disk = Disk(qmp, "disk0", DISK_SIZE, server, self.folder)
        qmp.run("object-add", qom_type="iothread", id="io0", quiet=True)
        file: dict[str, Any] = {"driver": "file", "filename": str(self._image)}
        if self._driver == "file":
            qmp.run("blockdev-add", node_name="disk0", **file)
        else:
            qmp.run("blockdev-add", driver=self._driver, node_name="disk0", file=file)
        qmp.run("nbd-server-start", addr={"type": "unix", "data": {"path": str(server)}})
        live: dict[str, Any] = {"type": "nbd", "id": "live", "node_name": "disk0", "name": "disk0"}
        qmp.run("block-export-add", writable=True, iothread="io0", **live)

    def start_guests(self) -> None:
        """Let new guests write, to files of their own; returns when each is connected."""
        for _ in range(GUESTS):
            identity = len(self.logs)
            self.logs.append(self.folder / f"guest{identity}.log")
            command = [sys.executable, str(HERE / "guest.py"), self.disk.uri("disk0")]
            command += [str(self._blocks[identity]), str(self.logs[identity])]
            command += [str(identity), str(self._seed + identity)]
            guest = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            self._guests.append(guest)
        for guest in self._guests:
            assert guest.stdout and guest.stdout.readline() == "ready\n"

    def work(self, writes: int) -> None:
        """Wait until the guests have done that many more writes."""
        goal = self._records() + 2 * writes
        outputs = [guest.stdout.fileno() for guest in self._guests if guest.stdout]
        while self._records() < goal:
            for ready in select.select(outputs, [], [])[0]:
                if not os.read(ready, 4096):
                    raise RuntimeError("a guest has ended")

    def _records(self) -> int:
        return sum(log.stat().st_size for log in self.logs if log.exists()) // 25

    def stop_guests(self) -> None:
        """Let the guests finish the write they are at, and end."""
        for guest in self._guests:
            guest.communicate("")
            if guest.returncode != 0:
                raise RuntimeError("a guest failed")
        self._guests = []

    def stop(self) -> None:
        """End the daemon, as an administrator would."""
        self._daemon.send_signal(signal.SIGTERM)
        code = self._daemon.wait(30)
        if code != 0:
            raise RuntimeError(f"the daemon ended with {code}")

    def __enter__(self) -> "Machine":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for guest in self._guests:
            guest.kill()
        if error is None:
            self.stop()
        else:
            self._daemon.kill()


def bitmap(verb: str, name: str, **more: Any) -> dict[str, Any]:
    """A bitmap action of a transaction."""
    return {"type": f"block-dirty-bitmap-{verb}", "data": {"node": "disk0", "name": name, **more}}


def merge(sources: list[str], target: str) -> dict[str, Any]:
    """The action that adds what is dirty in the sources to the target."""
    data = {"node": "disk0", "target": target, "bitmaps": sources}
    return {"type": "block-dirty-bitmap-merge", "data": data}


class Story:
    """Steps, each a backup; and what came out."""

    def __init__(self, machine: Machine, folder: Path):
        self._machine, self._disk, self._folder = machine, machine.disk, folder
        self.backups: list[Backup] = []

    def _incremental(
        self, name: str, base: Path, actions: list[dict[str, Any]], dirty_in: str
    ) -> Backup:
        """Freeze, pull what is dirty over a copy of the base, drop the view."""
        image = self._folder / f"{name}.img"
        copy_image(base, image)
        instant = self._disk.freeze(actions, dirty_in)
        backup = Backup(name, instant, self._disk.dirty_extents(dirty_in), image)
        backup.copied = self._disk.pull(backup.extents, image)
        self._disk.thaw()
        return self._finish(backup)

    def _finish(self, backup: Backup) -> Backup:
        backup.finished = time.monotonic()
        self.backups.append(backup)
        note(f"{size(backup.copied)} copied of {size(DISK_SIZE)}")
        return backup

    def _full(self, actions: list[dict[str, Any]]) -> Backup:
        """Freeze, and pull all that holds data."""
        instant = self._disk.freeze(actions, None)
        full = Backup("full", instant, [(0, DISK_SIZE)], self._folder / "full.img")
        full.copied = self._disk.pull_all(full.image)
        self._disk.thaw()
        return self._finish(full)

    def persistent(self) -> None:
        """Bitmaps that live in a qcow2 image, through a restart of the daemon."""
        machine = self._machine
        machine.work(500)
        heading("1. A full backup; from then on a persistent bitmap records")
        full = self._full([bitmap("add", "b1", persistent=True)])
        machine.work(1500)

        heading("2. The daemon ends, and starts again: the bitmap is in the image")
        machine.stop_guests()
        machine.stop()
        machine.start()
        self._disk = machine.disk
        note(f"b1 came back: {self._bitmaps()}")
        machine.start_guests()
        machine.work(1500)

        heading("3. What changed before and after the restart, in one increment")
        switch = [bitmap("disable", "b1"), bitmap("add", "b2", persistent=True)]
        self._incremental("increment-1", full.image, switch, "b1")
        machine.work(200)

    def _bitmaps(self) -> str:
        """What the daemon says of the disk's bitmaps."""
        nodes = self._disk.qmp.run("query-named-block-nodes", flat=True, quiet=True)
        node = next(node for node in nodes if node["node-name"] == "disk0")
        return ", ".join(
            f"'{found['name']}' with {size(found['count'])} dirty, "
            f"{'recording' if found['recording'] else 'not recording'}"
            for found in node["dirty-bitmaps"]
        )

    def run(self) -> None:
        """The main job."""
        machine, disk, folder = self._machine, self._disk, self._folder
        machine.work(500)

        heading("1. First checkpoint: a full backup from a frozen view")
        full = self._full([bitmap("add", "b1")])

        machine.work(3000)
        heading("2. Second checkpoint: only what is dirty in b1, from a view of that instant")
        switch = [bitmap("disable", "b1"), bitmap("add", "b2")]
        second = self._incremental("increment-1", full.image, switch, "b1")

        machine.work(2000)
        heading("3. A backup that fails half-way, is undone and repeated")
        self._failing([bitmap("disable", "b2"), bitmap("add", "b3")], second.image)
        note("undo: what b3 saw goes back to b2, which records again; b3 never was")
        disk.qmp.run(
            "transaction",
            actions=[merge(["b3"], "b2"), bitmap("enable", "b2"), bitmap("remove", "b3")],
        )
        machine.work(1000)
        switch = [bitmap("disable", "b2"), bitmap("add", "b3")]
        self._incremental("increment-2", second.image, switch, "b2")

        machine.work(1500)
        heading("4. Later: all that changed since checkpoint 1, by merging b1, b2 and b3")
        gather = [
            bitmap("disable", "b3"),
            bitmap("add", "since-1", disabled=True),
            merge(["b1", "b2", "b3"], "since-1"),
            bitmap("add", "b4"),
        ]
        self._incremental("since-1", full.image, gather, "since-1")
        disk.qmp.run("block-dirty-bitmap-remove", node="disk0", name="since-1")
        machine.work(200)

    def _failing(self, actions: list[dict[str, Any]], base: Path) -> None:
        """Start an increment and cut its client off when half is copied."""
        disk, image = self._disk, self._folder / "failed.img"
        copy_image(base, image)
        disk.freeze(actions, "b2")
        extents = disk.dirty_extents("b2")
        half = sum(length for _, length in extents) // 2
        cut = False

        def progress(copied: int) -> None:
            nonlocal cut
            if copied >= half and not cut:
                cut = True
                disk.cut_off()

        try:
            disk.pull(extents, image, progress)
        except BackupFailed as error:
            note(f"the client was cut off: {error}")
        else:
            raise RuntimeError("the backup should have failed")
        disk.thaw()
        image.unlink()


def summary(story: Story, verifier: Verifier, seconds: float) -> None:
    """Judge each restored image and print what a person likes to know."""
    heading("Restore each backup, compare it with the disk at that instant, check the file system")
    print(f"\n   {'backup':<13}{'changed':>10}{'copied':>11}{'of disk':>9}{'guest wrote':>13}{'took':>8}")
    for backup in story.backups:
        verifier.check(backup.image, backup.instant)
        meanwhile = verifier.writes_between(backup.instant.sent, backup.finished)
        took = backup.finished - backup.instant.sent
        print(
            f"   {backup.name:<13}{size(backup.dirty):>10}{size(backup.copied):>11}"
            f"{backup.copied / DISK_SIZE:>9.1%}{meanwhile:>6} writes{took:>6.2f} s  "
            + paint("verified", "32")
        )
        print("   " + paint(dirty_map(backup.extents, DISK_SIZE), "33"))
    writes = verifier.writes_between(0, float("inf"))
    print(f"\n   {len(story.backups)} backups of a {size(DISK_SIZE)} disk while its guests made "
          f"{writes} writes, in {seconds:.1f} s: " + paint("all verified", "1;32"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, default=SOURCE_TREE / "build")
    parser.add_argument("--seed", type=int, default=2026)
    arguments = parser.parse_args()
    daemon = arguments.build.resolve() / "storage-daemon" / "merino-storage-daemon"
    with tempfile.TemporaryDirectory(prefix="merino-demo-") as name:
        folder = Path(name)
        first, blocks = make_disk(folder)
        raw, qcow2 = folder / "disk.img", folder / "disk.qcow2"

        heading(f"A {size(DISK_SIZE)} ext4 disk, two guests that write to it, and the daemon")
        copy_image(first, raw)
        started = time.monotonic()
        with Machine(daemon, folder, arguments.seed, raw, "file", blocks) as machine:
            machine.start_guests()
            story = Story(machine, folder)
            story.run()
            machine.stop_guests()
            subprocess.run(["qemu-img", "info", "-U", machine.disk.uri("disk0")],
                           check=True, stdout=subprocess.DEVNULL)
        summary(story, Verifier(first, machine.logs, folder), time.monotonic() - started)
        raw.unlink()

        heading("The same disk as a qcow2 image")
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(first), str(qcow2)], check=True)
        started = time.monotonic()
        with Machine(daemon, folder, arguments.seed, qcow2, "qcow2", blocks) as machine:
            machine.start_guests()
            story = Story(machine, folder)
            story.persistent()
            machine.stop_guests()
        subprocess.run(["qemu-img", "check", "-q", str(qcow2)], check=True)
        summary(story, Verifier(first, machine.logs, folder), time.monotonic() - started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
