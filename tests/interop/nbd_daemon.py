# SPDX-License-Identifier: MIT
"""A storage daemon with QMP, and a TAP printer, for the tests of NBD.

The daemon is Merino's or QEMU's: both take the same command line and the same commands.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator

Json = dict[str, Any]


class QmpError(Exception):
    """A command was refused; the text is the error's description."""


class Daemon:
    """A running daemon in a folder of its own; `sock` is where its NBD server may listen."""

    def __init__(self, program: str, folder: Path, options: list[str]) -> None:
        self.folder = folder
        self.sock = str(folder / "nbd.sock")
        self.events: list[Json] = []
        self.process = subprocess.Popen(
            [program, *options, "--chardev=stdio,id=qmp", "--monitor=chardev=qmp"],
            cwd=folder,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._receive()
        self.command("qmp_capabilities")

    def _receive(self) -> Json:
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the daemon ended: {self.process.stderr.read()}")
        message: Json = json.loads(line)
        return message

    def request(self, name: str, /, arguments: Json | None = None) -> Json:
        """The whole reply to a command; events that come before it are kept."""
        assert self.process.stdin is not None
        message: Json = {"execute": name}
        if arguments is not None:
            message["arguments"] = arguments
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        while "event" in (reply := self._receive()):
            self.events.append(reply)
        return reply

    def command(self, name: str, /, **arguments: Any) -> Any:
        """What a command returns. Underscores in names stand for dashes."""
        reply = self.request(name, {key.replace("_", "-"): arguments[key] for key in arguments})
        if "error" in reply:
            raise QmpError(reply["error"]["desc"])
        return reply["return"]

    def wait_event(self, name: str) -> Json:
        """The next event of that name that nobody has taken yet."""
        while True:
            for event in self.events:
                if event["event"] == name:
                    self.events.remove(event)
                    return event
            self.events.append(self._receive())

    def quit(self, quiet: bool = True) -> None:
        """End the daemon, which must end well and, if `quiet`, without having complained."""
        self.command("quit")
        _, errors = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, (self.process.returncode, errors)
        assert not quiet or not errors, errors

    def kill(self) -> None:
        """End the daemon, whatever it does."""
        self.process.kill()
        self.process.communicate()


@contextmanager
def running(program: str, options: list[str], quiet: bool = True) -> Iterator[Daemon]:
    """A daemon for as long as the block runs."""
    with tempfile.TemporaryDirectory() as folder:
        daemon = Daemon(program, Path(folder), options)
        try:
            yield daemon
            daemon.quit(quiet)
        finally:
            daemon.kill()


def free_port() -> int:
    """A TCP port that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Skip(Exception):
    """A test cannot run here; the text says why."""


def run_tests(tests: list[tuple[str, Callable[[], None]]]) -> int:
    """Run the tests in order and print TAP. The exit code for main()."""
    failed = 0
    print(f"1..{len(tests)}", flush=True)
    for number, (name, test) in enumerate(tests, 1):
        try:
            test()
            print(f"ok {number} {name}", flush=True)
        except Skip as reason:
            print(f"ok {number} {name} # SKIP {reason}", flush=True)
        except BaseException:  # pylint: disable=broad-except
            failed += 1
            for line in traceback.format_exc().splitlines():
                print(f"# {line}")
            print(f"not ok {number} {name}", flush=True)
            if isinstance(sys.exc_info()[1], KeyboardInterrupt):
                raise
    return 1 if failed else 0
