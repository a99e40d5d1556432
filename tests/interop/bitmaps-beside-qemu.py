#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Bitmaps and transactions beside qemu-storage-daemon: the same commands, the same replies.

    bitmaps-beside-qemu.py DAEMON

First every command with good, missing, wrong and hostile arguments; then random sessions of
writes, commands, transactions that fail and such that do not, after each step of which all
bitmaps of both daemons have the same properties and digests. Prints TAP; MERINO_TEST_SEED repeats a
random session.

Left out is what makes QEMU 7.2 crash: merging an empty list of bitmaps, and `enable` actions that
fail. Error hints are not compared, only class and words.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Iterator

QEMU = "qemu-storage-daemon"
MIB = 1 << 20
NODES = {"file0": MIB, "file1": MIB, "small": 100 * 1024, "raw0": MIB}
STEPS = 300

Json = dict[str, Any]


class Daemon:
    """One of the two daemons, in a folder of its own."""

    def __init__(self, program: str, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        for name, size in NODES.items():
            with open(folder / f"{name}.img", "wb") as image:
                image.truncate(size)
        options = [f"--blockdev=driver=file,node-name={name},filename={name}.img"
                   for name in NODES if name != "raw0"]
        options += ["--blockdev=driver=file,node-name=below,filename=raw0.img",
                    "--blockdev=driver=raw,node-name=raw0,file=below",
                    "--nbd-server=addr.type=unix,addr.path=nbd.sock"]
        options += [f"--export=type=nbd,id=x{name},node-name={name},name={name},writable=on"
                    for name in NODES]
        self.process = subprocess.Popen(
            [program, *options, "--chardev=stdio,id=c", "--monitor=chardev=c"],
            cwd=folder, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.receive()
        self.ask({"execute": "qmp_capabilities"})

    def receive(self) -> Json:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args!r} ended with {self.process.wait()}")
        message: Json = json.loads(line)
        return message

    def ask(self, request: Json) -> Json:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        while "event" in (message := self.receive()):
            pass
        return message

    def write(self, node: str, commands: list[str]) -> None:
        arguments = [argument for command in commands for argument in ("-c", command)]
        subprocess.run(["qemu-io", "-f", "raw", *arguments,
                        f"nbd+unix:///{node}?socket={self.folder}/nbd.sock"],
                       check=True, stdout=subprocess.DEVNULL, timeout=60)

    def bitmaps(self) -> Json:
        """All bitmaps with their digests, by node."""
        picture: Json = {}
        nodes = self.ask({"execute": "query-named-block-nodes", "arguments": {"flat": True}})
        for node in nodes["return"]:
            found = node.get("dirty-bitmaps", [])
            for bitmap in found:
                which = {"node": node["node-name"], "name": bitmap["name"]}
                digest = self.ask({"execute": "x-debug-block-dirty-bitmap-sha256",
                                   "arguments": which})
                bitmap["sha256"] = digest["return"]["sha256"]
            picture[node["node-name"]] = found
        return picture

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


# --- every command with good and bad arguments ---


def command(name: str, /, **arguments: Any) -> Json:
    return {"execute": name, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}}


def actions(*data: tuple[str, Json], **more: Any) -> Json:
    return command("transaction", actions=[{"type": t, "data": d} for t, d in data], **more)


BIG = [0, 1, -1, 511, 513, 768, 1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1]
WRONG: list[Any] = [None, True, 7, 1.5, "text", "", "0", [], {}, "x" * 1023, "x" * 1024,
                    "\u00e9" * 512, "\U0001f4be", "a/b", "nope", "file0", "t"]


def adding() -> Iterator[Json]:
    for value in WRONG:
        yield command("block-dirty-bitmap-add", node=value, name="w")
        yield command("block-dirty-bitmap-add", node="file0", name=value)
        yield command("block-dirty-bitmap-add", node="file0", name="g", granularity=value)
        yield command("block-dirty-bitmap-add", node="file0", name="d", disabled=value)
        yield command("block-dirty-bitmap-add", node="file0", name="p", persistent=value)
    for size in BIG:
        yield command("block-dirty-bitmap-add", node="raw0", name=f"g{size}", granularity=size)
        yield command("block-dirty-bitmap-add", node="raw0", name="", granularity=size)
        yield command("block-dirty-bitmap-add", node="raw0", name="p", granularity=size,
                      persistent=True)
    yield command("block-dirty-bitmap-add", node="file0")
    yield command("block-dirty-bitmap-add", name="t")
    yield command("block-dirty-bitmap-add")
    yield {"execute": "block-dirty-bitmap-add"}
    yield command("block-dirty-bitmap-add", node="file0", name="t", surprise=1)
    yield command("block-dirty-bitmap-add", node="file0", name="t", persistent=True)


def changing() -> Iterator[Json]:
    for verb in ["disable", "disable", "enable", "enable", "clear", "remove", "remove"]:
        name = f"block-dirty-bitmap-{verb}"
        yield command(name, node="file0", name="t")
        for value in WRONG:
            if value != "t":
                yield command(name, node=value, name="t")
                yield command(name, node="file0", name=value)
        yield command(name, node="file0")
        yield command(name, name="t")
        yield command(name, node="file0", name="t", surprise={})
    yield command("x-debug-block-dirty-bitmap-sha256", node="file0")
    yield command("x-debug-block-dirty-bitmap-sha256", node="nope", name="t")
    yield command("x-debug-block-dirty-bitmap-sha256", node="file0", name="nope")


def merging() -> Iterator[Json]:
    for name in "abc":
        yield command("block-dirty-bitmap-add", node="file1", name=name)
    yield command("block-dirty-bitmap-add", node="small", name="s")
    small, other = {"node": "small", "name": "s"}, {"node": "file1", "name": "b"}
    lists: list[Any] = [["a"], ["nope"], ["b", "c"], ["b", "nope"], [other], [other, other],
                        [small], ["b", small], ["nope", small], [small, "nope"],
                        [{"node": "nope", "name": "b"}], [{"node": "file1"}], [{"name": "b"}],
                        [{"node": "file1", "name": "b", "x": 1}], [[]], [7], [None], "b", {}, 7]
    for sources in lists:
        yield command("block-dirty-bitmap-merge", node="file1", target="a", bitmaps=sources)
        yield command("block-dirty-bitmap-merge", node="file1", target="nope", bitmaps=sources)
        yield command("block-dirty-bitmap-merge", node="nope", target="a", bitmaps=sources)
    yield command("block-dirty-bitmap-merge", node="file1", target="a")
    yield command("block-dirty-bitmap-merge", node="file1", bitmaps=["b"])


def using() -> Iterator[Json]:
    """What a bitmap refuses while an export holds it."""
    yield command("block-dirty-bitmap-add", node="file1", name="held", disabled=True)
    yield command("block-export-add", type="nbd", id="holder", node_name="file1", name="h",
                  bitmaps=["held"])
    for verb in ["remove", "clear", "enable", "disable"]:
        yield command(f"block-dirty-bitmap-{verb}", node="file1", name="held")
    yield command("block-dirty-bitmap-merge", node="file1", target="held", bitmaps=["a"])
    yield command("block-dirty-bitmap-merge", node="file1", target="held", bitmaps=["nope"])
    yield command("block-dirty-bitmap-merge", node="file1", target="a", bitmaps=["b", "held"])
    yield command("x-debug-block-dirty-bitmap-sha256", node="file1", name="held")
    yield command("block-export-add", type="nbd", id="second", node_name="file1", name="2",
                  bitmaps=["held"])
    yield actions(("block-dirty-bitmap-clear", {"node": "file1", "name": "a"}),
                  ("block-dirty-bitmap-clear", {"node": "file1", "name": "held"}))


def transacting() -> Iterator[Json]:
    add = ("block-dirty-bitmap-add", {"node": "file1", "name": "k"})
    remove = ("block-dirty-bitmap-remove", {"node": "file1", "name": "k"})
    clear = ("block-dirty-bitmap-clear", {"node": "file1", "name": "k"})
    abort: tuple[str, Json] = ("abort", {})
    yield actions()
    yield actions(abort)
    yield actions(add, abort)
    yield actions(add, add)
    yield actions(add, clear, remove)
    yield actions(add, remove, add)
    yield actions(add)
    yield actions(remove, remove)
    yield actions(remove, clear)
    yield actions(clear, remove, abort)
    yield actions(remove, ("block-dirty-bitmap-add", {"node": "nope", "name": "k"}))
    grouped = {"completion-mode": "grouped"}
    for one in [abort, add, remove, clear]:
        yield actions(one, properties=grouped)
        yield actions(abort, one, properties=grouped)
    for properties in [{}, {"completion-mode": "individual"}, {"completion-mode": "x"}, 7,
                       {"x": 1}, {"completion-mode": 7}]:
        yield actions(clear, properties=properties)
    odd: list[Any] = [7, None, {}, {"type": "abort"}, {"data": {}}, {"type": 7, "data": {}},
                      {"type": "nope", "data": {}}, {"type": "abort", "data": {"x": 1}},
                      {"type": "abort", "data": {}, "x": 1}, {"type": "abort", "data": []},
                      {"type": "block-dirty-bitmap-clear", "data": {"node": "file1"}}]
    for action in odd:
        yield command("transaction", actions=[action])
        yield command("transaction", actions=[{"type": "abort", "data": {}}, action])
    wrong: list[Any] = [7, None, {}, "x"]
    for value in wrong:
        yield command("transaction", actions=value)
    yield {"execute": "transaction"}


# --- random sessions ---


class Session:
    """Draws steps; knows which bitmaps should be there, so that most steps succeed."""

    def __init__(self, rand: random.Random) -> None:
        self.rand = rand
        self.names: dict[str, list[str]] = {node: [] for node in NODES}
        self.serial = 0

    def pick(self) -> Json:
        node = self.rand.choice(list(NODES))
        names = self.names[node]
        known = names and self.rand.random() < 0.97
        return {"node": node, "name": self.rand.choice(names) if known else "nope"}

    def action(self) -> tuple[str, Json]:
        kind = self.rand.choice(["add", "add", "remove", "clear", "enable", "disable", "merge"])
        which = self.pick()
        if kind == "add":
            self.serial += 1
            which["name"] = f"b{self.serial}"
            if self.rand.random() < 0.7:
                which["granularity"] = 512 << self.rand.randrange(10)
            which["disabled"] = self.rand.random() < 0.4
        elif kind == "merge":
            sources = [self.pick() for _ in range(self.rand.randint(1, 3))]
            which = {"node": which["node"], "target": which["name"], "bitmaps": sources}
        elif kind == "enable" and which["name"] == "nope":
            kind = "disable"
        return f"block-dirty-bitmap-{kind}", which

    def request(self) -> Json:
        if self.rand.random() < 0.4:
            kind, data = self.action()
            return {"execute": kind, "arguments": data}
        drawn = [self.action() for _ in range(self.rand.randint(1, 6))]
        removed = {(d["node"], d["name"]) for k, d in drawn if k.endswith("remove")}
        drawn = [(k, d) for k, d in drawn  # an enable that fails crashes QEMU
                 if not (k.endswith("enable") and (d["node"], d["name"]) in removed)]
        if self.rand.random() < 0.3:
            drawn.append(("abort", {}))
        return actions(*drawn)

    def learn(self, picture: Json) -> None:
        for node in NODES:
            self.names[node] = [bitmap["name"] for bitmap in picture[node]]

    def writes(self) -> tuple[str, list[str]]:
        node = self.rand.choice(list(NODES))
        size = NODES[node]
        commands = []
        for _ in range(self.rand.randint(1, 4)):
            offset = self.rand.randrange(size // 512) * 512
            length = min(self.rand.choice([512, 4096, 65536, 300 * 512]), size - offset)
            commands.append(f"{self.rand.choice(['write -q', 'write -q -z', 'discard -q'])}"
                            f" {offset} {length}")
        return node, commands


# --- TAP ---


class Failed(Exception):
    pass


def compare_replies(ours: Daemon, qemus: Daemon, request: Json) -> None:
    theirs = qemus.ask(request)
    mine = ours.ask(request)
    if mine != theirs:
        raise Failed(f"{json.dumps(request)[:400]}\nQEMU: {json.dumps(theirs)[:400]}\n"
                     f"ours: {json.dumps(mine)[:400]}")


def compare_bitmaps(ours: Daemon, qemus: Daemon) -> Json:
    theirs, mine = qemus.bitmaps(), ours.bitmaps()
    if mine != theirs:
        raise Failed(f"QEMU: {json.dumps(theirs)}\nours: {json.dumps(mine)}")
    return mine


def check_requests(ours: Daemon, qemus: Daemon, requests: Iterator[Json]) -> None:
    failures = []
    for request in requests:
        try:
            compare_replies(ours, qemus, request)
        except Failed as failure:
            failures.append(str(failure))
    if failures:
        raise Failed("\n".join(failures))
    compare_bitmaps(ours, qemus)


def check_session(ours: Daemon, qemus: Daemon, seed: int) -> None:
    session = Session(random.Random(seed))
    for _ in range(STEPS):
        if session.rand.random() < 0.15:
            node, commands = session.writes()
            ours.write(node, commands)
            qemus.write(node, commands)
        else:
            compare_replies(ours, qemus, session.request())
        session.learn(compare_bitmaps(ours, qemus))


def why_not() -> str | None:
    """Why there is nothing to compare with; None when there is."""
    for program in [QEMU, "qemu-io"]:
        if shutil.which(program) is None:
            return f"{program} is not installed"
    version = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True)
    return None if "version 7.2" in version.stdout else f"{QEMU} is not of version 7.2"


def main() -> int:
    seed = int(os.environ.get("MERINO_TEST_SEED", "0"), 0) or random.randrange(1 << 32)
    reason = why_not()
    if reason is not None:
        print(f"1..0 # SKIP {reason}")
        return 0
    tests = {test.__name__: test for test in [adding, changing, merging, using, transacting]}
    ok = True
    with tempfile.TemporaryDirectory(prefix="merino-beside-") as folder:
        for number, name in enumerate([*tests, "random session"], 1):
            print(f"# {name}, MERINO_TEST_SEED={seed}")
            ours = Daemon(str(Path(sys.argv[1]).resolve()), Path(folder) / f"ours{number}")
            qemus = Daemon(QEMU, Path(folder) / f"qemus{number}")
            failure = ""
            try:
                if name in tests:
                    check_requests(ours, qemus, tests[name]())
                else:
                    check_session(ours, qemus, seed)
            except (Failed, RuntimeError, subprocess.SubprocessError) as error:
                failure = str(error)
            print(f"{'not ok' if failure else 'ok'} {number} - {name}", flush=True)
            print("".join(f"# {line}\n" for line in failure.splitlines()), end="")
            ok = ok and not failure
            ours.close()
            qemus.close()
    print(f"1..{len(tests) + 1}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
