#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Other people's NBD clients against our server.

    nbd-clients.py DAEMON

Each test runs over both transports and with the export on the main loop and on an I/O thread. The
disk is a sparse file, so that holes, data and bitmaps are where the test put them; what a client
reads, writes or maps is compared with the file. Prints TAP.
"""

from __future__ import annotations

import filecmp
import json
import random
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Callable, Iterator

from nbd_daemon import Daemon, Skip, free_port, run_tests, running
from nbd_wire import Wire

MIB = 1 << 20
SIZE = 64 * MIB
CLUSTER = 65536
# Clusters with data, and dirty clusters of the bitmap.
DATA = [(16, 4), (100, 1), (500, 24)]
DIRTY = [(0, 1), (100, 3), (1000, 24)]

DAEMON = ""


class Setup:
    """A daemon with one disk, exported read-only as 'ro' and writable as 'rw'."""

    def __init__(self, daemon: Daemon, tcp: bool, iothread: bool) -> None:
        self.daemon = daemon
        self.image = daemon.folder / "disk.raw"
        generator = random.Random(1)
        with open(self.image, "wb") as image:
            image.truncate(SIZE)
            for first, count in DATA:
                image.seek(first * CLUSTER)
                image.write(generator.randbytes(count * CLUSTER))
        daemon.command("object-add", qom_type="iothread", id="io0")
        daemon.command("blockdev-add", driver="file", node_name="file", filename=str(self.image),
                       discard="unmap")
        daemon.command("blockdev-add", driver="raw", node_name="disk", file="file",
                       discard="unmap")
        if tcp:
            self.port = free_port()
            address = {"type": "inet", "data": {"host": "127.0.0.1", "port": str(self.port)}}
            self.base, self.query = f"nbd://127.0.0.1:{self.port}/", ""
            self.qemu_nbd = ["-b", "127.0.0.1", "-p", str(self.port)]
        else:
            address = {"type": "unix", "data": {"path": daemon.sock}}
            self.base, self.query = "nbd+unix:///", f"?socket={daemon.sock}"
            self.qemu_nbd = ["-k", daemon.sock]
        daemon.command("nbd-server-start", addr=address)
        self.make_bitmap()
        thread = {"iothread": "io0"} if iothread else {}
        daemon.command("block-export-add", type="nbd", id="ro", node_name="disk", name="ro",
                       description="a disk", bitmaps=["dirty"], allocation_depth=True, **thread)
        daemon.command("block-export-add", type="nbd", id="rw", node_name="disk", name="rw",
                       writable=True, **thread)

    def make_bitmap(self) -> None:
        """A bitmap that is dirty where DIRTY says, by writing what is there already."""
        self.daemon.command("block-dirty-bitmap-add", node="disk", name="dirty",
                            granularity=CLUSTER)
        self.daemon.command("block-export-add", type="nbd", id="tmp", node_name="disk",
                            name="tmp", writable=True)
        with open(self.image, "rb") as image:
            before = image.read()
        for first, count in DIRTY:
            content = self.daemon.folder / "content"
            content.write_bytes(before[first * CLUSTER:(first + count) * CLUSTER])
            run("qemu-io", "-f", "raw", "-c",
                f"write -q -s {content} {first * CLUSTER} {count * CLUSTER}", self.uri("tmp"))
        self.daemon.command("block-export-del", id="tmp", mode="hard")
        self.daemon.wait_event("BLOCK_EXPORT_DELETED")
        self.daemon.command("block-dirty-bitmap-disable", node="disk", name="dirty")

    def uri(self, export: str) -> str:
        """The export's address, as libnbd and QEMU write it."""
        return f"{self.base}{export}{self.query}"


def run(*command: str, expect: int = 0) -> str:
    """Run a client and return its output."""
    if not shutil.which(command[0]):
        raise Skip(f"{command[0]} is not installed")
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=240, check=False)
    assert done.returncode == expect, (command, done.returncode, done.stdout)
    return done.stdout


def runs(extents: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Clusters as [(offset, length, flag)] over the whole disk; flag is 1 inside the extents."""
    found = []
    position = 0
    for first, count in extents + [(SIZE // CLUSTER, 0)]:
        if first * CLUSTER > position:
            found.append((position, first * CLUSTER - position, 0))
        if count:
            found.append((first * CLUSTER, count * CLUSTER, 1))
        position = (first + count) * CLUSTER
    return found


def data_runs() -> list[tuple[int, int, int]]:
    """Where the file has data: what was written at first, and zeroes where DIRTY wrote them."""
    clusters = {first + i for first, count in DATA + DIRTY for i in range(count)}
    merged: list[tuple[int, int]] = []
    for cluster in sorted(clusters):
        if merged and sum(merged[-1]) == cluster:
            merged[-1] = (merged[-1][0], merged[-1][1] + 1)
        else:
            merged.append((cluster, 1))
    return runs(merged)


def joined(extents: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Neighbours with the same value as one."""
    out: list[tuple[int, int, int]] = []
    for offset, length, value in extents:
        if out and out[-1][2] == value:
            out[-1] = (out[-1][0], out[-1][1] + length, value)
        else:
            out.append((offset, length, value))
    return out


# --- the clients ---


def test_nbdinfo(setup: Setup) -> None:
    """--list, --json, and --map of each context."""
    listed = json.loads(run("nbdinfo", "--json", "--list", setup.uri("")))
    exports = {export["export-name"]: export for export in listed["exports"]}
    assert set(exports) == {"ro", "rw"}, exports
    assert exports["ro"]["description"] == "a disk"
    assert exports["ro"]["export-size"] == SIZE
    assert exports["ro"]["contexts"] == ["base:allocation", "qemu:allocation-depth",
                                         "qemu:dirty-bitmap:dirty"]
    assert exports["ro"]["is_read_only"] and not exports["rw"]["is_read_only"]
    assert exports["rw"]["can_fast_zero"] and exports["rw"]["can_multi_conn"]
    maps = {
        "base:allocation": [(o, n, 0 if data else 3) for o, n, data in data_runs()],
        "qemu:dirty-bitmap:dirty": runs(DIRTY),
        "qemu:allocation-depth": [(0, SIZE, 1)],
    }
    for context, expected in maps.items():
        told = json.loads(run("nbdinfo", "--json", f"--map={context}", setup.uri("ro")))
        assert joined([(e["offset"], e["length"], e["type"]) for e in told]) == expected, context


def test_nbdcopy(setup: Setup) -> None:
    """Out of the export, and back into it, with many requests and connections."""
    out = setup.daemon.folder / "out.raw"
    run("nbdcopy", "--requests=64", "--connections=4", setup.uri("ro"), str(out))
    assert filecmp.cmp(setup.image, out, shallow=False)
    new = setup.daemon.folder / "new.raw"
    new.write_bytes(random.Random(2).randbytes(SIZE // 4) + bytes(SIZE // 4 * 3))
    run("nbdcopy", "--flush", str(new), setup.uri("rw"))
    assert filecmp.cmp(setup.image, new, shallow=False)


def test_qemu_img(setup: Setup) -> None:
    """info, map, compare, convert in both directions, bench."""
    out = setup.daemon.folder / "out.raw"
    information = json.loads(run("qemu-img", "info", "--output=json", setup.uri("ro")))
    assert information["virtual-size"] == SIZE
    told = json.loads(run("qemu-img", "map", "-f", "raw", "--output=json", setup.uri("ro")))
    assert joined([(e["start"], e["length"], int(e["data"])) for e in told]) == data_runs()
    run("qemu-img", "convert", "-m", "8", "-W", "-f", "raw", "-O", "raw", setup.uri("ro"),
        str(out))
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", str(out), setup.uri("rw"))
    with open(out, "r+b") as image:
        image.seek(5 * MIB)
        image.write(b"changed")
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", str(out), setup.uri("ro"), expect=1)
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(out), setup.uri("rw"))
    assert filecmp.cmp(setup.image, out, shallow=False)
    run("qemu-img", "bench", "-q", "-w", "-f", "raw", "-c", "500", "-d", "32", "-s", "4096",
        setup.uri("rw"))


def test_qemu_img_dirty_bitmap(setup: Setup) -> None:
    """The bitmap as QEMU's NBD client reads it: dirty ranges look like holes in data."""
    server = ({"server.type": "inet", "server.host": "127.0.0.1", "server.port": str(setup.port)}
              if not setup.query else
              {"server.type": "unix", "server.path": setup.daemon.sock})
    options = {"driver": "nbd", "export": "ro",
               "x-dirty-bitmap": "qemu:dirty-bitmap:dirty", **server}
    told = json.loads(run("qemu-img", "map", "--output=json", "--image-opts",
                          ",".join(f"{key}={value}" for key, value in options.items())))
    assert joined([(e["start"], e["length"], int(not e["data"])) for e in told]) == runs(DIRTY)


def test_qemu_io(setup: Setup) -> None:
    """Writes, zeroes, discards and many requests at a time."""
    run("qemu-io", "-f", "raw", "-c", "write -P 1 100k 300k", "-c", "write -f -P 2 200k 1k",
        "-c", "read -P 1 100k 100k", "-c", "read -P 2 200k 1k", "-c", "write -z 100k 50k",
        "-c", "write -z -u 150k 50k", "-c", "read -P 0 100k 100k", "-c", "discard 1M 1M",
        "-c", "flush", "-c", "write -P 3 65535 2", "-c", "read -P 3 65535 2", setup.uri("rw"))
    with open(setup.image, "rb") as image:
        content = image.read(2 * MIB)
    assert content[65535:65537] == b"\3\3"
    assert not any(content[102400:204800]) and content[204800:205824] == b"\2" * 1024
    assert not any(content[MIB:])
    many = [argument for i in range(40) for argument in
            ("-c", f"aio_write -q -P {i + 1} {i * 128}k 64k")]
    run("qemu-io", "-f", "raw", *many, "-c", "aio_flush", "-c", "read -P 40 4992k 64k",
        setup.uri("rw"))
    said = run("qemu-io", "-f", "raw", "-c", "write 0 512", setup.uri("ro"), expect=1)
    assert "Permission denied" in said, said


def test_qemu_nbd(setup: Setup) -> None:
    """As a client that lists, and as a server whose disk is our export."""
    said = run("qemu-nbd", "--list", *setup.qemu_nbd)
    assert "exports available: 2" in said, said
    assert "  flags: 0x58f ( readonly flush fua df multi cache )" in said, said
    assert "  flags: 0xded ( flush fua trim zeroes df multi cache fast-zero )" in said, said
    assert "  max block: 33554432" in said, said
    assert "   qemu:dirty-bitmap:dirty" in said, said
    again = setup.daemon.folder / "again.sock"
    out = setup.daemon.folder / "out.raw"
    run("qemu-nbd", "--fork", "-r", "-f", "raw", "-k", str(again), "-x", "again", setup.uri("ro"))
    run("nbdcopy", f"nbd+unix:///again?socket={again}", str(out))
    assert filecmp.cmp(setup.image, out, shallow=False)


def test_fio(setup: Setup) -> None:
    """fio's engine writes at random, many at a time, and verifies what it wrote."""
    said = run("fio", "--name=verify", "--ioengine=nbd", f"--uri={setup.uri('rw')}",
               "--rw=randwrite", "--bsrange=512-128k", "--size=16m", "--iodepth=32",
               "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--verify_state_save=0",
               "--randseed=7")
    assert "err= 0" in said, said


def test_libnbd(setup: Setup) -> None:
    """libnbd's own module: many requests in flight, block status of all contexts at once."""
    try:
        import nbd
    except ImportError as error:
        raise Skip("python3-libnbd is not installed") from error
    handle = nbd.NBD()
    for context in ("base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:dirty"):
        handle.add_meta_context(context)
    handle.connect_uri(setup.uri("ro"))
    assert handle.get_block_size(nbd.SIZE_MAXIMUM) == 32 * MIB
    seen: dict[str, int] = {}

    def note(context: str, offset: int, entries: list[int], _error: object) -> None:
        seen[context] = seen.get(context, offset) + sum(entries[::2])

    handle.block_status(SIZE, 0, note)
    assert seen == {"base:allocation": SIZE, "qemu:allocation-depth": SIZE,
                    "qemu:dirty-bitmap:dirty": SIZE}, seen
    whole = setup.image.read_bytes()
    pending = []
    for index in range(64):
        buffer = nbd.Buffer(CLUSTER)
        offset = (index * 37 % 1000) * CLUSTER + index
        pending.append((handle.aio_pread(buffer, offset), buffer, offset))
    while any(not handle.aio_command_completed(cookie) for cookie, _, _ in pending[-1:]):
        handle.poll(-1)
    while handle.aio_in_flight():
        handle.poll(-1)
    for _, buffer, offset in pending:
        assert buffer.to_bytearray() == whole[offset:offset + CLUSTER], offset
    handle.shutdown()


def timer_of(port: int) -> int:
    """What the kernel waits for on the server's side of a connection: see proc_net_tcp in Linux."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].split(":")[1], 16) == port and fields[3] == "01":
            return int(fields[5].split(":")[0], 16)
    raise AssertionError(f"no connection at port {port}")


def vanished_peers() -> None:
    """Whether a TCP client is still there the kernel finds out by itself."""
    sending, keep_alive = 1, 2
    with running(DAEMON, []) as daemon:
        port = Setup(daemon, True, False).port
        with Wire(("127.0.0.1", port)) as wire:
            wire.greet()
            while (timer := timer_of(port)) == sending:
                pass
            assert timer == keep_alive, timer


CLIENTS: list[Callable[[Setup], None]] = [
    test_nbdinfo, test_nbdcopy, test_qemu_img, test_qemu_img_dirty_bitmap, test_qemu_io,
    test_qemu_nbd, test_fio, test_libnbd,
]


def one(client: Callable[[Setup], None], tcp: bool, iothread: bool) -> None:
    """One client against a fresh daemon."""
    with running(DAEMON, []) as daemon:
        client(Setup(daemon, tcp, iothread))


def all_tests() -> Iterator[tuple[str, Callable[[], None]]]:
    """Every client, over both transports, on both kinds of loops."""
    for client in CLIENTS:
        name = client.__name__.removeprefix("test_")
        for tcp in (False, True):
            for iothread in (False, True):
                where = f"{'tcp' if tcp else 'unix'}, {'iothread' if iothread else 'main loop'}"
                yield f"{name}: {where}", partial(one, client, tcp, iothread)
    yield "peers that vanish", vanished_peers


if __name__ == "__main__":
    DAEMON = str(Path(sys.argv[1]).resolve())
    sys.exit(run_tests(list(all_tests())))
