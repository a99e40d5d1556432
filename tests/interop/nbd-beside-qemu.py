#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""The NBD server beside qemu-storage-daemon: the same bytes in, the same answers out.

    nbd-beside-qemu.py DAEMON

Two parts: commands on the server and on exports (replies compared word by word), and conversations
with the server (option replies and request replies compared field by field). Where ours differs
on purpose the expected answer stands beside the question, with the reason. Prints TAP; skips where
qemu-storage-daemon is missing.
"""

from __future__ import annotations

import shutil
import struct
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Callable

from nbd_daemon import Daemon, Json, Skip, run_tests, running
from nbd_wire import (
    CHUNK_BLOCK_STATUS, CHUNK_OFFSET_DATA, CHUNK_OFFSET_HOLE, CMD_BLOCK_STATUS, CMD_CACHE,
    CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, FLAG_DF, FLAG_FAST_ZERO, FLAG_FUA,
    FLAG_NO_HOLE, FLAG_PAYLOAD_LEN, FLAG_REQ_ONE, IHAVEOPT, OPT_ABORT, OPT_EXPORT_NAME, OPT_INFO,
    OPT_LIST, OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT, OPT_STARTTLS, OPT_STRUCTURED_REPLY,
    Answer, Closed, Wire, extents,
)

QEMU = "qemu-storage-daemon"
MIB = 1 << 20
SIZE = 16 * MIB
EPERM, EINVAL, ENOSPC = 1, 22, 28

DAEMON = ""


def both(stack: ExitStack) -> tuple[Daemon, Daemon]:
    """Ours and QEMU's, with the same disks."""
    if not shutil.which(QEMU):
        raise Skip(f"{QEMU} is not installed")
    pair = [stack.enter_context(running(program, [], program == DAEMON))
            for program in (DAEMON, QEMU)]
    for daemon in pair:
        with open(daemon.folder / "disk.raw", "wb") as image:
            image.truncate(SIZE)
            for offset, length in ((65536, 65536), (4 * MIB, 4096)):
                image.seek(offset)
                image.write(bytes([offset >> 16]) * length)
        daemon.command("blockdev-add", driver="file", node_name="file",
                       filename=str(daemon.folder / "disk.raw"))
        daemon.command("blockdev-add", driver="raw", node_name="disk", file="file")
        daemon.command("blockdev-add", driver="null-co", node_name="null", size=SIZE)
        daemon.command("blockdev-add", driver="null-co", node_name="fixed", size=SIZE,
                       read_only=True)
        for name, enabled in (("off", False), ("on", True), ("off2", False)):
            daemon.command("block-dirty-bitmap-add", node="disk", name=name, granularity=65536,
                           disabled=not enabled)
    return pair[0], pair[1]


# --- commands ---

UNIX: Json = {"type": "unix", "data": {"path": "nbd.sock"}}


def inet(host: str, port: str, **more: Any) -> Json:
    """The address of an inet socket."""
    return {"type": "inet", "data": {"host": host, "port": port, **more}}


def export(name: str, node: str = "disk", /, **more: Any) -> tuple[str, Json]:
    """block-export-add of an NBD export."""
    return "block-export-add", {"type": "nbd", "id": name, "node-name": node, **more}


NO_SERVER: list[tuple[str, Json]] = [
    export("e"),
    ("nbd-server-stop", {}),
    ("nbd-server-add", {"device": "disk"}),
    ("nbd-server-remove", {"name": "disk"}),
    ("block-export-del", {"id": "e"}),
    ("query-block-exports", {}),
    ("nbd-server-start", {}),
    ("nbd-server-start", {"addr": UNIX, "max-connections": -1}),
    ("nbd-server-start", {"addr": UNIX, "max-connections": 1 << 32}),
    ("nbd-server-start", {"addr": UNIX, "nope": 1}),
    ("nbd-server-start", {"addr": {"type": "nope", "data": {}}}),
    ("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "no/such/folder"}}}),
    ("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "x" * 109}}}),
    ("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "."}}}),
    ("nbd-server-start", {"addr": inet("localhost", "nope")}),
    ("nbd-server-start", {"addr": inet("192.0.2.1", "10809")}),
    ("nbd-server-start", {"addr": inet("localhost", "0", ipv4=False, ipv6=False)}),
    ("nbd-server-start", {"addr": inet("127.0.0.1", "nope", numeric=True)}),
]

WITH_SERVER: list[tuple[str, Json]] = [
    ("nbd-server-start", {"addr": UNIX}),
    export("e", "nope"),
    export("1e"),
    export(""),
    export("a b"),
    export("a" * 300),
    ("block-export-del", {"id": "a" * 300}),
    ("block-export-add", {"type": "nope", "id": "e", "node-name": "disk"}),
    ("block-export-add", {"type": "nbd", "id": "e"}),
    ("block-export-add", {"type": "nbd", "node-name": "disk"}),
    export("e", name=7),
    export("e", nope=7),
    export("e", iothread="nope"),
    export("e", "fixed", writable=True),
    export("e", name="x" * 4097),
    export("e", description="x" * 4097),
    export("e", bitmaps=["nope"]),
    export("e", bitmaps=[{"node": "nope", "name": "off"}]),
    export("e", bitmaps=[{"node": "disk", "name": "nope"}]),
    export("e", bitmaps=["on"]),
    export("e", bitmaps=["off", "on"]),
    export("e", bitmaps=[7]),
    export("e", "file", bitmaps=["off"]),
    export("e", bitmaps=["off", "off2"], **{"allocation-depth": True}),
    export("e", name="other"),
    export("f"),
    export("f", name="disk"),
    export("f", name="f", bitmaps=["off"]),
    export("f", name="f", bitmaps=["on"], writable=True, writethrough=True),
    ("query-block-exports", {}),
    ("block-dirty-bitmap-remove", {"node": "disk", "name": "off"}),
    ("block-dirty-bitmap-clear", {"node": "disk", "name": "off"}),
    ("block-dirty-bitmap-enable", {"node": "disk", "name": "off2"}),
    ("block-dirty-bitmap-disable", {"node": "disk", "name": "on"}),
    ("block_resize", {"node-name": "disk", "size": MIB}),
    ("blockdev-del", {"node-name": "disk"}),
    ("block-export-del", {"id": "nope"}),
    ("block-export-del", {"id": "e", "mode": "nope"}),
    ("block-export-del", {"id": "e", "mode": "safe"}),
    ("block-export-del", {"id": "f", "mode": "hard"}),
    ("query-block-exports", {}),
    ("block-dirty-bitmap-clear", {"node": "disk", "name": "off"}),
    ("nbd-server-add", {"device": "disk"}),
    ("nbd-server-add", {"device": "disk"}),
    ("nbd-server-add", {"device": "nope"}),
    ("nbd-server-add", {"device": "fixed", "writable": True}),
    ("nbd-server-add", {"device": "disk", "name": "5n"}),
    ("nbd-server-add", {"device": "disk", "name": ""}),
    ("nbd-server-add", {"device": "disk", "name": "n1", "description": "d", "bitmap": "off"}),
    ("nbd-server-add", {"device": "disk", "name": "n2", "bitmap": "off"}),
    ("nbd-server-add", {"device": "disk", "name": "n2", "bitmap": "nope"}),
    ("query-block-exports", {}),
    ("nbd-server-remove", {"name": "nope"}),
    ("nbd-server-remove", {"name": "n1", "mode": "nope"}),
    ("nbd-server-remove", {"name": "n1"}),
    ("nbd-server-start", {"addr": UNIX}),
    ("nbd-server-stop", {}),
    ("query-block-exports", {}),
    ("nbd-server-stop", {}),
    ("nbd-server-start", {"addr": inet("127.0.0.1", "0")}),
    ("nbd-server-stop", {}),
]


def reply_of(daemon: Daemon, name: str, arguments: Json) -> Json:
    """A reply without what differs by nature."""
    reply = daemon.request(name, arguments)
    reply.pop("timestamp", None)
    return reply


def compare_commands(commands: list[tuple[str, Json]]) -> None:
    """Each command has the same reply on both sides."""
    with ExitStack() as stack:
        ours, qemu = both(stack)
        for name, arguments in commands:
            got, wanted = (reply_of(daemon, name, arguments) for daemon in (ours, qemu))
            assert got == wanted, f"{name} {arguments}: {got}, QEMU: {wanted}"
        deleted = [sorted(event["data"]["id"] for event in daemon.events
                          if event["event"] == "BLOCK_EXPORT_DELETED") for daemon in (ours, qemu)]
        assert deleted[0] == deleted[1], deleted


# --- conversations ---

Step = tuple[str, Callable[[Wire], Any]]


def serve(daemon: Daemon, max_connections: int = 0) -> str:
    """Start the server with the exports of the conversations; its socket."""
    daemon.command("nbd-server-start",
                   addr={"type": "unix", "data": {"path": daemon.sock}},
                   max_connections=max_connections)
    daemon.command("block-export-add", type="nbd", id="rw", node_name="disk", name="rw",
                   description="text", writable=True, bitmaps=["on"], allocation_depth=True)
    daemon.command("block-export-add", type="nbd", id="ro", node_name="disk", name="",
                   bitmaps=["off", "off2"])
    return daemon.sock


def told(conversation: Callable[[Wire], Any], sock: str) -> Any:
    """What the server said, or that it hung up."""
    with Wire(sock) as wire:
        try:
            return conversation(wire)
        except Closed:
            return "closed"


def greeted(option: Callable[[Wire], Any], structured: bool = False) -> Callable[[Wire], Any]:
    """A conversation of one option after the greeting."""

    def conversation(wire: Wire) -> Any:
        wire.greet()
        if structured:
            wire.option(OPT_STRUCTURED_REPLY)
        return option(wire)

    return conversation


def hangs_up(data: bytes) -> Callable[[Wire], Any]:
    """A conversation that the server ends when it has seen `data`."""

    def conversation(wire: Wire) -> Any:
        wire.greet()
        wire.send(data)
        return wire.at_end()

    return conversation


def export_name(flags: int, name: bytes, length: int) -> Callable[[Wire], Any]:
    """EXPORT_NAME after those client flags."""

    def conversation(wire: Wire) -> Any:
        wire.greet(flags)
        wire.send_option(OPT_EXPORT_NAME, name)
        return wire.recv(length) if length else wire.at_end()

    return conversation


QUERIES = [
    [], ["base:"], ["qemu:"], ["qemu:dirty-bitmap:"], ["base:allocation"] * 3,
    ["qemu:dirty-bitmap:off2", "qemu:allocation-depth", "base:allocation"],
    ["qemu:dirty-bitmap:on", "foo:bar", "base:nope", "qemu:nope", "qemu:dirty-bitmap:nope", ""],
]

SHORT_DATA = [b"", b"\0\0\0\1", b"\0\0\0\1a", b"\0\0\0\1a\0\2\0\0", b"\0\0\0\1a\0\0\0",
              struct.pack(">I", 5000) + bytes(5002),
              struct.pack(">I", 4096) + b"a" * 4096 + bytes(2)]


def options() -> list[Step]:
    """Everything that is asked during negotiation."""
    steps: list[Step] = [
        ("greeting", lambda wire: wire.greet()),
        ("list", greeted(lambda wire: wire.option(OPT_LIST))),
        ("list with data", greeted(lambda wire: wire.option(OPT_LIST, b"x"))),
        ("unknown", greeted(lambda wire: wire.option(77, b"abcd"))),
        ("peek", greeted(lambda wire: wire.option(4))),
        ("starttls", greeted(lambda wire: wire.option(OPT_STARTTLS))),
        ("starttls with data", greeted(lambda wire: wire.option(OPT_STARTTLS, b"x"))),
        ("abort", greeted(lambda wire: (wire.option(OPT_ABORT), wire.at_end()))),
        ("structured", greeted(lambda wire: wire.option(OPT_STRUCTURED_REPLY))),
        ("structured twice", greeted(lambda wire: wire.option(OPT_STRUCTURED_REPLY), True)),
        ("set too early", greeted(lambda wire: wire.contexts("rw", ["base:allocation"]))),
        ("unknown client flags", lambda wire: (wire.greet(4), wire.at_end())),
        ("not fixed", lambda wire: (wire.greet(2), wire.option(OPT_LIST))),
        ("wrong magic", hangs_up(b"x" * 16)),
        ("too large", hangs_up(struct.pack(">QII", IHAVEOPT, 77, 33 * MIB))),
        ("export name", export_name(0, b"rw", 134)),
        ("export name, fixed", export_name(1, b"rw", 134)),
        ("export name, no zeroes", export_name(3, b"", 10)),
        ("export name, missing", export_name(3, b"nope", 0)),
        ("export name, long", export_name(3, b"x" * 4097, 0)),
    ]
    for structured in (False, True):
        for name in ("rw", "", "nope"):
            for infos in ((), (0, 1, 2, 3, 99), (3, 3, 1, 1)):
                ask = partial(Wire.go, name=name, infos=infos, option=OPT_INFO)
                steps.append((f"info {name!r} {infos} {structured}", greeted(ask, structured)))
    for name in ("rw", "", "nope"):
        for queries in QUERIES:
            for option in (OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT):
                ask = partial(Wire.contexts, name=name, queries=queries, option=option)
                steps.append((f"contexts {option} {name!r} {queries}", greeted(ask, True)))
    for data in SHORT_DATA:
        ask = partial(Wire.option, option=OPT_INFO, data=data)
        steps.append((f"info with {data[:16]!r} ({len(data)})", greeted(ask)))
    for data in SHORT_DATA[:3] + [b"\0\0\0\2rw\0\0\0\1", b"\0\0\0\2rw\0\0\0\1\0\0\0\7bas"]:
        ask = partial(Wire.option, option=OPT_LIST_META_CONTEXT, data=data)
        steps.append((f"contexts with {data!r}", greeted(ask)))
    return steps


def compare_options(max_connections: int) -> None:
    """Each conversation goes the same way with both."""
    with ExitStack() as stack:
        socks = [serve(daemon, max_connections) for daemon in both(stack)]
        for name, conversation in options():
            got, wanted = (told(conversation, sock) for sock in socks)
            assert got == wanted, f"{name}: {got}, QEMU: {wanted}"


def summary(answer: Answer, offset: int, length: int) -> Any:
    """An answer in terms of what it means: how reads are cut into pieces is the server's choice."""
    if answer.error:
        return ("error", answer.error, answer.message)
    content = bytearray(length)
    read = False
    status = []
    for reply in answer.replies:
        if reply.type == CHUNK_BLOCK_STATUS:
            status.append(extents(reply))
        elif reply.type in (CHUNK_OFFSET_DATA, CHUNK_OFFSET_HOLE):
            (at,) = struct.unpack_from(">Q", reply.data)
            if reply.type == CHUNK_OFFSET_DATA:
                content[at - offset:at - offset + len(reply.data) - 8] = reply.data[8:]
            read = True
        elif reply.kind == "simple" and reply.data:
            content[:] = reply.data
            read = True
    forms = {reply.kind for reply in answer.replies}
    return ("ok", sorted(forms), bytes(content) if read else b"", status)


# Offset, length and flags of a request that both answer alike, or with the error that ours gives by
# the protocol document where QEMU says EINVAL.
REQUESTS: list[tuple[int, int, int, int, int | None]] = [
    (CMD_READ, 65536, 512, 0, None),
    (CMD_READ, 65536, 0, 0, None),
    (CMD_READ, 65535, 3, 0, None),
    (CMD_READ, 32768, 131072, 0, None),
    (CMD_READ, 32768, 131072, FLAG_DF, None),
    (CMD_READ, 0, SIZE, 0, None),
    (CMD_READ, SIZE, 1, 0, None),
    (CMD_READ, SIZE - 8, 16, 0, None),
    (CMD_READ, 1 << 63, 16, 0, None),
    (CMD_READ, (1 << 64) - 1, 16, 0, None),
    (CMD_READ, 0, 33 * MIB, 0, None),
    (CMD_READ, 0, 16, 0x8000, None),
    (CMD_READ, 0, 16, FLAG_FUA, None),
    (CMD_READ, 0, 16, FLAG_NO_HOLE, None),
    (99, 0, 16, 0, None),
    (CMD_WRITE, 8192, 512, 0, None),
    (CMD_WRITE, 8192, 0, 0, None),
    (CMD_WRITE, 8192, 512, FLAG_FUA, None),
    (CMD_WRITE, 8192, 512, FLAG_DF, None),
    (CMD_WRITE, 8192, 512, FLAG_PAYLOAD_LEN, None),
    (CMD_WRITE, SIZE, 512, 0, ENOSPC),
    (CMD_READ, 8192, 1024, 0, None),
    (CMD_TRIM, 0, 4096, 0, None),
    (CMD_TRIM, 0, 0, 0, None),
    (CMD_TRIM, 0, 4096, FLAG_FUA, None),
    (CMD_TRIM, SIZE, 1, 0, None),
    (CMD_TRIM, 0, 0xFFFFFFFF, 0, None),
    (CMD_WRITE_ZEROES, 8192, 100, 0, None),
    (CMD_WRITE_ZEROES, 8192, 0, 0, None),
    (CMD_WRITE_ZEROES, 8192, 4096, FLAG_NO_HOLE | FLAG_FAST_ZERO, None),
    (CMD_WRITE_ZEROES, SIZE, 1, 0, ENOSPC),
    (CMD_WRITE_ZEROES, 0, 4096, FLAG_DF, None),
    (CMD_READ, 8192, 1024, 0, None),
    (CMD_CACHE, 0, 4096, 0, None),
    (CMD_CACHE, 0, 0, FLAG_FUA, None),
    (CMD_CACHE, SIZE, 1, 0, None),
    (CMD_CACHE, 0, 33 * MIB, 0, None),
    (CMD_FLUSH, 0, 0, 0, None),
    (CMD_FLUSH, 5, 6, FLAG_FUA, None),
    (CMD_FLUSH, 0, 0, FLAG_DF, None),
    (CMD_BLOCK_STATUS, 65536, SIZE - 65536, 0, None),
    (CMD_BLOCK_STATUS, 65536, SIZE - 65536, FLAG_REQ_ONE, None),
    (CMD_BLOCK_STATUS, 65537, 65535 + 512, 0, None),
    (CMD_BLOCK_STATUS, 65536, 1, 0, None),
    (CMD_BLOCK_STATUS, 65536, 0, 0, None),
    (CMD_BLOCK_STATUS, 65536, SIZE, 0, None),
    (CMD_BLOCK_STATUS, 0, 512, FLAG_DF, None),
]


def start(sock: str, name: str, structured: bool, contexts: list[str]) -> Wire:
    """A client in transmission."""
    wire = Wire(sock)
    wire.greet()
    if structured:
        wire.option(OPT_STRUCTURED_REPLY)
        if contexts:
            wire.contexts(name, contexts)
    wire.go(name)
    return wire


def compare_requests(name: str, structured: bool, contexts: list[str]) -> None:
    """Each request has the same answer from both."""
    with ExitStack() as stack:
        wires = [stack.enter_context(start(serve(daemon), name, structured, contexts))
                 for daemon in both(stack)]
        for command, offset, length, flags, differs in REQUESTS:
            payload = b"w" * length if command == CMD_WRITE else b""
            answers = [wire.ask(command, offset, length, flags, 1, payload) for wire in wires]
            got, wanted = (summary(answer, offset, length if command == CMD_READ else 0)
                           for answer in answers)
            what = f"command {command} {offset} {length} {flags:#x}"
            if wanted[0] == "error" and "read-only" in wanted[2]:
                differs = EPERM
            if not structured and not name and command in (CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES):
                differs = EPERM
            if differs:
                assert wanted[1] == EINVAL, (what, wanted)
                wanted = (wanted[0], differs, wanted[2])
            assert got == wanted, f"{what}: {str(got)[:300]}, QEMU: {str(wanted)[:300]}"


ALL = ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:on",
       "qemu:dirty-bitmap:off", "qemu:dirty-bitmap:off2"]

TESTS: list[tuple[str, Callable[[], None]]] = [
    ("commands without a server", partial(compare_commands, NO_SERVER)),
    ("commands with a server", partial(compare_commands, WITH_SERVER)),
    ("options", partial(compare_options, 0)),
    ("options of a server for one client", partial(compare_options, 1)),
    ("requests, simple", partial(compare_requests, "rw", False, [])),
    ("requests, structured", partial(compare_requests, "rw", True, [])),
    ("requests, all contexts", partial(compare_requests, "rw", True, ALL)),
    ("requests on a read-only export, simple", partial(compare_requests, "", False, [])),
    ("requests on a read-only export, all contexts", partial(compare_requests, "", True, ALL)),
]

if __name__ == "__main__":
    DAEMON = str(Path(sys.argv[1]).resolve())
    sys.exit(run_tests(TESTS))
