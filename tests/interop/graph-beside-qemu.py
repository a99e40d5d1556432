#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Nodes beside qemu-storage-daemon: the same commands, the same replies, the same nodes.

    graph-beside-qemu.py DAEMON

First directed sessions of blockdev-add, -del, -reopen, block_resize and exports; then random ones.
After each command both daemons must report the same nodes in the same order. Prints TAP;
MERINO_TEST_SEED repeats the random sessions. Skips where QEMU 7.2 is missing.

Left out is what ours does otherwise on purpose:
- blockdev-reopen takes `force-share` when it stays as it is, the last of several options for one
  node counts alone, `discard` left out goes back to its default, an empty `cache` is fine;
- raw over a new file checks its window against that file, and needs a file of fixed size from when
  it gets an offset, not only when it was opened with one;
- the disk under a frozen view is not shrunk, and what is above a node whose child was exchanged
  follows its size;
- children are opened after their parent's name and common options were checked;
and what makes QEMU 7.2 crash: an empty list of options. A session in which QEMU crashes ends there.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from typing import Any, Callable

from nbd_daemon import Daemon, Json, Skip, run_tests, running

QEMU = "qemu-storage-daemon"
MIB = 1 << 20
FILES = 100
SESSIONS = 6
STEPS = 150
SEED = 7000  # of the first random session

DAEMON = ""


class Crashed(Exception):
    """QEMU's daemon is gone."""


def plain(message: Json) -> Any:
    """A reply without names that nobody gave, without what the file system decides, and without what
    ours reports in addition."""
    text = re.sub(r"#block\d+", "#block", json.dumps(message, sort_keys=True))
    text = re.sub(r'"format-specific": {"data": {[^}]*}, "type": "copy-before-write"}, ', "", text)
    text = re.sub(r"\bg(\d+)\.img", r"f\1.img", text)
    return json.loads(re.sub(r'"actual-size": \d+', '"actual-size": 0', text))


def difference(theirs: Any, mine: Any, path: str = "") -> str:
    """The first place where two replies part, in words."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        for key in sorted({*theirs, *mine}):
            if theirs.get(key) != mine.get(key):
                return difference(theirs.get(key), mine.get(key), f"{path}.{key}")
    if isinstance(theirs, list) and isinstance(mine, list) and len(theirs) == len(mine):
        for index, pair in enumerate(zip(theirs, mine)):
            if pair[0] != pair[1]:
                return difference(*pair, f"{path}[{index}]")
    return f"at {path}\nQEMU: {theirs}\nours: {mine}"


def renamed(arguments: Json) -> Json:
    """The same about the files of QEMU's daemon: locks of one must not meet those of the other."""
    return json.loads(re.sub(r'"f(\d+)\.img"', r'"g\1.img"', json.dumps(arguments)))  # type: ignore


class Twins:
    """Ours and QEMU's, with files that look alike."""

    def __init__(self, stack: ExitStack) -> None:
        if not shutil.which(QEMU):
            raise Skip(f"{QEMU} is not installed")
        version = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True)
        if "version 7.2" not in version.stdout:
            raise Skip(f"{QEMU} is not of version 7.2")
        self.ours = stack.enter_context(running(DAEMON, []))
        self.qemus = Daemon(QEMU, self.ours.folder, [])
        stack.callback(self.qemus.kill)
        folder = self.ours.folder
        self.sizes: dict[str, int] = {}
        for name in ["odd.img", *(f"{kind}{number}.img" for kind in "fg"
                                  for number in range(FILES))]:
            with open(folder / name, "wb") as image:
                image.truncate(1000 if name == "odd.img" else MIB)
        for daemon, name in ((self.ours, "ours"), (self.qemus, "qemus")):
            address = {"type": "unix", "data": {"path": f"{name}.sock"}}
            daemon.command("nbd-server-start", addr=address)

    def ask(self, name: str, arguments: Json) -> Json:
        """Both replies, which must be the same."""
        try:
            theirs = self.qemus.request(name, renamed(arguments))
        except (RuntimeError, BrokenPipeError) as error:
            raise Crashed from error
        mine = self.ours.request(name, arguments)
        assert plain(mine) == plain(theirs), \
            f"{name} {json.dumps(arguments)} {difference(plain(theirs), plain(mine))}"
        return mine

    def nodes(self) -> list[str]:
        """The names of all nodes, newest first, after comparing what is known of them."""
        self.ask("query-named-block-nodes", {"flat": True})
        reply = self.ask("query-named-block-nodes", {})
        self.sizes = {node["node-name"]: node["image"]["virtual-size"] for node in reply["return"]}
        return list(self.sizes)

    def say(self, name: str, /, **arguments: Any) -> Json:
        """The same with underscores for dashes, and with a look at all nodes afterwards."""
        reply = self.ask(name, {key.replace("_", "-"): arguments[key] for key in arguments})
        self.nodes()
        return reply

    def add(self, driver: str, node_name: str, /, **options: Any) -> Json:
        return self.say("blockdev-add", driver=driver, node_name=node_name, **options)

    def reopen(self, *options: Json) -> None:
        self.say("blockdev-reopen", options=list(options))

    def resize(self, node_name: str, size: int) -> None:
        self.say("block_resize", **{"node-name": node_name, "size": size})

    def export(self, ident: str, node_name: str, writable: bool = True) -> None:
        self.say("block-export-add", id=ident, type="nbd", node_name=node_name, name=ident,
                 writable=writable)

    def unexport(self, ident: str) -> None:
        """The last client's last word comes later: wait until both have deleted it."""
        self.say("block-export-del", id=ident, mode="hard")
        for daemon in (self.ours, self.qemus):
            daemon.wait_event("BLOCK_EXPORT_DELETED")


# --- directed sessions ---


def names(both: Twins) -> None:
    both.add("file", "f", filename="f0.img")
    for name in ["f", "1f", "x" * 31, "x" * 32, "", "a b", "#block1", "a/b", "a.b-c_d"]:
        both.add("null-co", name)
    both.say("blockdev-add", driver="null-co")
    both.add("raw", "r", file="f")
    both.add("raw", "r2", file="nope")
    both.add("raw", "r3", file={"driver": "file", "filename": "f1.img"})
    both.add("raw", "r4", file={"driver": "file", "filename": "nope.img"})
    both.add("raw", "x", file={"driver": "null-co", "node-name": "x"})
    both.add("raw", "x", file={"driver": "null-co", "node-name": "f"})
    both.add("raw", "x", file="x")
    both.add("raw", "x", file=None)
    both.add("raw", "x")
    both.add("bogus", "x")
    both.add("raw", "x", file={"driver": "null-co"}, detect_zeroes="unmap")
    both.add("null-co", "x", force_share=True)
    both.add("file", "odd", filename="odd.img")
    for name in ["f", "nope", "r3", "r", "f", "odd"]:
        both.say("blockdev-del", node_name=name)
    both.say("query-block")


def long_chain(both: Twins) -> None:
    options: Json = {"driver": "null-co", "size": MIB}
    for _ in range(60):
        options = {"driver": "raw", "file": options}
    options["node-name"] = "top"
    both.ask("blockdev-add", options)
    both.nodes()
    both.reopen(options)
    both.reopen({**options, "read-only": True})
    both.say("blockdev-del", node_name="top")


def sizes(both: Twins) -> None:
    both.add("file", "f", filename="f0.img")
    both.add("raw", "r", file="f")
    for node in ["f", "r"]:
        for size in [2 * MIB, -1, 2 * MIB + 1, 1 << 62, (1 << 63) - 1, 0, MIB]:
            both.resize(node, size)
    both.resize("nope", 5)
    both.ask("block_resize", {"size": 5})
    both.ask("block_resize", {"device": "nope", "size": 5})
    both.add("null-co", "n", size=MIB)
    both.add("raw", "w", file="n", offset=4096)
    both.resize("n", 2 * MIB)
    both.resize("w", 2 * MIB)
    both.add("raw", "w2", file="n", offset=4097)
    both.add("raw", "w3", file="n", offset=4096, size=511)
    both.add("raw", "w4", file="n", offset=4096, size=MIB)
    both.add("raw", "w5", file="n", offset=-1)
    both.add("raw", "w6", file="n", offset=2 * MIB)
    both.add("raw", "w7", file="n", size=512)
    both.add("raw", "over", file="w7")
    both.resize("over", 1024)
    both.add("null-co", "ro", size=MIB, read_only=True)
    both.add("raw", "over-ro", file="ro")
    both.resize("ro", 512)
    both.resize("over-ro", 512)


def reopening(both: Twins) -> None:
    file: Json = {"driver": "file", "node-name": "f", "filename": "f0.img"}
    raw: Json = {"driver": "raw", "node-name": "r", "file": "f"}
    both.add("file", "f", filename="f0.img")
    both.add("file", "g", filename="f1.img")
    both.add("null-co", "n", size=MIB)
    both.add("raw", "r", file="f")
    changes: list[Json] = [
        raw, {**raw, "read-only": True}, {**raw, "read-only": True, "offset": 512}, raw,
        {**raw, "driver": "null-co"}, {"driver": "null-co", "node-name": "r"},
        {**raw, "node-name": "nope"}, {"driver": "raw", "file": "f"}, {**raw, "file": "g"}, raw,
        {**raw, "file": "nope"}, {**raw, "file": "r"}, {**raw, "file": {"driver": "null-co"}},
        {**raw, "file": "n"}, {**raw, "offset": 512, "size": 513}, raw,
        {**raw, "detect-zeroes": "unmap"}, {**raw, "detect-zeroes": "unmap", "discard": "unmap"},
        {**file, "filename": "f2.img"}, {"driver": "file", "node-name": "f"},
        {**file, "read-only": True}, file, {**file, "aio": "native"}, {**file, "locking": "on"},
        {**file, "cache": {"no-flush": True}}, {**file, "cache": {"direct": True}}, file,
        {**file, "discard": "unmap", "detect-zeroes": "unmap"}, {**file, "force-share": True},
        {"driver": "null-co", "node-name": "n"}, {"driver": "null-co", "node-name": "f"},
        {"driver": "null-co", "node-name": "n", "size": 512},
        {"driver": "null-co", "node-name": "n", "size": MIB, "read-zeroes": True},
        {"driver": "raw", "node-name": "n", "size": MIB, "file": "f"},
        {"driver": "raw", "node-name": "n", "size": MIB, "file": "nope"},
    ]
    for change in changes:
        both.reopen(change)
    both.reopen(raw, {**file, "filename": "f2.img"})
    both.reopen({**raw, "file": "g"}, {**file, "read-only": True})


def inline_children(both: Twins) -> None:
    inner: Json = {"driver": "file", "filename": "f0.img"}
    raw: Json = {"driver": "raw", "node-name": "r", "file": inner}
    both.add("raw", "r", read_only=True, cache={"direct": False, "no-flush": True}, file=inner)
    changes: list[Json] = [
        raw, {**raw, "read-only": True}, {**raw, "file": {**inner, "filename": "f1.img"}},
        {**raw, "file": {**inner, "node-name": "other"}}, {**raw, "file": {"driver": "null-co"}},
        {**raw, "file": {**inner, "read-only": True}}, {**raw, "file": {**inner, "aio": "threads"}},
        {**raw, "file": {**inner, "cache": {"direct": True}}}, raw,
    ]
    for change in changes:
        both.reopen(change)
    both.add("raw", "r2", file={"driver": "file", "filename": "f1.img", "node-name": "in"})
    both.reopen({"driver": "raw", "node-name": "r2", "file": "in"})
    both.say("blockdev-del", node_name="in")
    both.add("null-co", "n", size=MIB)
    both.reopen({"driver": "raw", "node-name": "r2", "file": "n"})
    both.say("blockdev-del", node_name="in")


def permissions(both: Twins) -> None:
    both.add("null-co", "n", size=MIB)
    both.add("raw", "r", file="n")
    both.add("raw", "w1", file="n", offset=0, size=512)
    both.add("raw", "w2", file="n", offset=512, size=512)
    for name in ["w1", "w2", "n", "r"]:
        both.export(f"on-{name}", name)
    both.export("on-r", "r")
    both.resize("n", 512)
    both.say("blockdev-del", node_name="w1")
    both.reopen({"driver": "null-co", "node-name": "n", "size": MIB, "read-only": True})
    both.reopen({"driver": "raw", "node-name": "r", "file": "n", "read-only": True})
    both.add("null-co", "ro", size=MIB, read_only=True)
    both.add("raw", "over", file="ro")
    both.export("on-ro", "ro")
    both.export("on-over", "over")
    both.export("reads", "over", writable=False)
    both.unexport("reads")
    both.unexport("on-r")
    both.reopen({"driver": "raw", "node-name": "r", "file": "n", "read-only": True})


def frozen_view(both: Twins) -> None:
    """QEMU's recipe: raw's file is pointed at the filter and, later, back."""
    raw: Json = {"driver": "raw", "node-name": "top", "file": "disk"}
    both.add("null-co", "disk", size=MIB)
    both.add("null-co", "old", size=MIB)
    both.add("raw", "top", file="disk")
    both.export("guest", "top")
    both.add("copy-before-write", "cbw", file="disk", target="old")
    both.reopen({**raw, "file": "cbw"})
    both.add("snapshot-access", "view", file="cbw")
    both.export("backup", "view", writable=False)
    both.export("second", "disk")
    both.reopen(raw)
    both.reopen({"driver": "copy-before-write", "node-name": "cbw", "file": "disk",
                 "target": "old"})
    both.reopen({"driver": "snapshot-access", "node-name": "view", "file": "disk"})
    for name in ["disk", "old", "cbw", "view"]:
        both.say("blockdev-del", node_name=name)
    both.unexport("backup")
    both.say("blockdev-del", node_name="view")
    both.reopen(raw)
    both.say("blockdev-del", node_name="cbw")
    both.add("copy-before-write", "cbw", file="disk", target="disk")
    both.add("null-co", "large", size=2 * MIB)
    both.add("copy-before-write", "cbw2", file="disk", target="large")
    both.add("copy-before-write", "cbw3", file="large", target="old")


# --- random sessions ---


class Session:
    """Draws commands, most of which can succeed."""

    def __init__(self, rand: random.Random) -> None:
        self.rand = rand
        self.present: list[str] = []
        self.sizes: dict[str, int] = {}
        self.last: dict[str, Json] = {}  # the options that each node was opened with last
        self.serial = 0

    def maybe(self, probability: float) -> bool:
        return self.rand.random() < probability

    def common(self) -> Json:
        options: Json = {}
        if self.maybe(0.2):
            options["read-only"] = self.maybe(0.6)
        if self.maybe(0.1):
            options["auto-read-only"] = self.maybe(0.5)
        if self.maybe(0.1):
            flags = self.rand.sample(["direct", "no-flush"], self.rand.randint(1, 2))
            options["cache"] = {flag: self.maybe(0.5) for flag in flags}
        if self.maybe(0.15):
            options["discard"] = self.rand.choice(["unmap", "ignore"])
        if self.maybe(0.1):
            options["detect-zeroes"] = self.rand.choice(["on", "off", "unmap"])
        return options

    def child(self, depth: int) -> Any:
        if self.maybe(0.8) or depth > 2:
            return self.rand.choice([*self.present, *self.present, "nope"])
        options = self.options(depth + 1)
        if self.maybe(0.3):
            self.serial += 1
            options["node-name"] = f"in{self.serial}"
        return options

    def options(self, depth: int = 0) -> Json:
        driver = self.rand.choice(["file", "file", "raw", "raw", "raw", "null-co",
                                   "copy-before-write", "snapshot-access"])
        options: Json = {**self.common(), "driver": driver}
        if self.maybe(0.03) and options.get("read-only"):
            options["force-share"] = True
        if driver == "file":
            self.serial += 1
            options["filename"] = f"f{self.serial % FILES}.img"
        elif driver == "null-co":
            options["size"] = self.rand.choice([MIB, MIB, 2 * MIB])
        else:
            options["file"] = self.child(depth)
        if driver == "raw" and self.maybe(0.3):
            options["offset"] = self.rand.choice([0, 512, 4096, MIB // 2])
        if driver == "raw" and self.maybe(0.3):
            options["size"] = self.rand.choice([0, 512, 4096, MIB // 2, MIB])
        if driver == "copy-before-write":
            options["target"] = self.child(depth)
        if "file" in options and options.get("discard") != "unmap":
            options.pop("detect-zeroes", None)
        return options

    def reopening(self, name: str) -> Json:
        """The node's own options with some changes."""
        options = {key: value for key, value in self.last[name].items() if key != "force-share"}
        if self.maybe(0.6):
            for key in ["read-only", "cache", "discard", "detect-zeroes", "auto-read-only"]:
                options.pop(key, None)
            options.update(self.common())
        if options.get("detect-zeroes") == "unmap":
            options["discard"] = "unmap"
        window = "offset" in options or "size" in options
        alike = [each for each in self.present if self.sizes[each] == self.sizes[name]]
        if "file" in options and not window and self.maybe(0.5):
            options["file"] = self.rand.choice(alike)
        return options

    def is_viewed(self, name: str) -> bool:
        """Whether a copy-before-write node may be somewhere near."""
        return any("copy-before-write" in json.dumps(options) for options in self.last.values())

    def request(self) -> tuple[str, Json] | None:
        """One command, or None when this draw comes to nothing."""
        names_ = [f"n{number}" for number in range(6)]
        name = self.rand.choice(names_)
        kind = self.rand.random()
        if kind < 0.3:
            free = [each for each in names_ if each not in self.present]
            if not free:
                return None
            return "blockdev-add", {**self.options(), "node-name": self.rand.choice(free)}
        if kind < 0.5:
            return "blockdev-del", {"node-name": name}
        if kind < 0.75:
            known = [each for each in self.rand.sample(names_, self.rand.randint(1, 2))
                     if each in self.last and each in self.present]
            changes = [self.reopening(each) for each in known]
            return ("blockdev-reopen", {"options": changes}) if changes else None
        if kind < 0.85:
            size = self.rand.choice([512, 4096, MIB, MIB, 2 * MIB])
            return None if self.is_viewed(name) else ("block_resize",
                                                      {"node-name": name, "size": size})
        ident = f"e{self.rand.randrange(4)}"
        if kind < 0.95:
            return "block-export-add", {"id": ident, "type": "nbd", "name": ident,
                                        "node-name": name, "writable": self.maybe(0.6)}
        return "block-export-del", {"id": ident}

    def learn(self, name: str, arguments: Json) -> None:
        if name == "blockdev-add":
            self.last[arguments["node-name"]] = arguments
        elif name == "blockdev-reopen":
            for options in arguments["options"]:
                self.last[options["node-name"]] = options
        elif name == "blockdev-del":
            del self.last[arguments["node-name"]]


def random_session(seed: int, both: Twins) -> None:
    session = Session(random.Random(seed))
    print(f"# MERINO_TEST_SEED={seed}")
    try:
        for _ in range(STEPS):
            request = session.request()
            if request is None:
                continue
            reply = both.ask(*request)
            if "return" in reply:
                session.learn(*request)
            session.present = [name for name in both.nodes() if not name.startswith("#")]
            session.sizes = both.sizes
    except Crashed:
        print("# QEMU crashed")


def run(session: Callable[[Twins], None]) -> None:
    with ExitStack() as stack:
        session(Twins(stack))


def main() -> int:
    global DAEMON
    DAEMON = os.path.abspath(sys.argv[1])
    given = os.environ.get("MERINO_TEST_SEED")
    first = int(given, 0) if given else SEED
    directed = [names, long_chain, sizes, reopening, inline_children, permissions, frozen_view]
    tests: list[tuple[str, Callable[[], None]]]
    tests = [(session.__name__.replace("_", " "), partial(run, session)) for session in directed]
    for number in range(SESSIONS):
        session = partial(random_session, first + number)
        tests.append((f"random session {number + 1}", partial(run, session)))
    return run_tests(tests)


if __name__ == "__main__":
    sys.exit(main())
