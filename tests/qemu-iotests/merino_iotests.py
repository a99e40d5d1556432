# SPDX-License-Identifier: MIT
"""What the scripts of this folder share: a daemon in a folder of its own, QMP, and TAP.

A script is a file of functions named test_*, each with a docstring that says which behaviour it
tries, and ends with `main(globals())`. Each function gets a fresh Test: its folder, and whatever it
starts, are gone afterwards. Nothing sleeps: what is waited for is an event with a deadline.

Programs under test come from the build folder, named by MERINO_BUILD (default: build/ in the tree).
QEMU's programs are looked up in PATH; a test that needs one is skipped where it is missing.
"""

from __future__ import annotations

import contextlib
import fcntl
import inspect
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

Json = Any
Message = dict[str, Json]

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("MERINO_BUILD", ROOT / "build")).resolve()

# Long enough for a loaded machine and a sanitizer build; reaching it is a failure.
DEADLINE_SECONDS = 60.0


class Skip(Exception):
    """The test cannot run here; the text says why."""


class Late(Exception):
    """What was waited for did not come before the deadline."""


class EndOfStream(Exception):
    """The other side closed the connection."""


class QmpError(Exception):
    """A command was refused."""

    def __init__(self, error: Message) -> None:
        super().__init__(error["desc"])
        self.error_class: str = error["class"]
        self.desc: str = error["desc"]


class Deadline:
    """A point in time by which something must have happened."""

    def __init__(self, seconds: float = DEADLINE_SECONDS) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds to go; raises Late when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise Late("deadline exceeded")
        return left


def merino_program(name: str) -> str:
    """A program of the build folder."""
    folder = {"merino-img": "tools/img", "merino-storage-daemon": "storage-daemon"}[name]
    path = BUILD / folder / name
    if not path.exists():
        raise Skip(f"{path} is not built")
    return str(path)


def is_sanitized() -> bool:
    """Whether the programs are built with a sanitizer, which takes memory of its own."""
    with open(BUILD / "meson-info/intro-buildoptions.json", encoding="utf-8") as file:
        options = {option["name"]: option["value"] for option in json.load(file)}
    return bool(options["b_sanitize"] != "none")


def system_program(name: str) -> str:
    """A program of the machine."""
    path = shutil.which(name)
    if path is None:
        raise Skip(f"{name} is not installed")
    return path


def run(*command: str, check: bool = True, feed: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with `feed` as its input; with `check`, a failure is a failure of
    the test."""
    done = subprocess.run(
        command, input=feed, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done


class Qmp:
    """A QMP client over a connected socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.events: list[Message] = []
        self.greeting: Message = {}
        self._received = b""

    def close(self) -> None:
        self.socket.close()

    # Bytes and messages

    def send_bytes(self, data: bytes) -> None:
        self.socket.settimeout(DEADLINE_SECONDS)
        self.socket.sendall(data)

    def receive_line(self, deadline: Optional[Deadline] = None) -> bytes:
        """The next line as it came, with its end."""
        deadline = deadline or Deadline()
        while b"\n" not in self._received:
            self.socket.settimeout(deadline.left())
            try:
                data = self.socket.recv(1 << 20)
            except ConnectionResetError:
                data = b""
            except TimeoutError as late:
                raise Late("no message") from late
            if not data:
                raise EndOfStream(repr(self._received))
            self._received += data
        line, end, self._received = self._received.partition(b"\n")
        return line + end

    def receive(self, deadline: Optional[Deadline] = None) -> Message:
        """The next message, be it a reply or an event."""
        message: Message = json.loads(self.receive_line(deadline))
        return message

    def reply(self) -> Message:
        """The next reply; events before it are kept."""
        deadline = Deadline()
        while True:
            message = self.receive(deadline)
            if "event" not in message:
                return message
            self.events.append(message)

    def expect_end(self) -> None:
        """The server closes the stream, and nothing but events comes before."""
        deadline = Deadline()
        with contextlib.suppress(EndOfStream):
            while True:
                message = self.receive(deadline)
                assert "event" in message, message
                self.events.append(message)

    # Commands and events

    def negotiate(self) -> None:
        self.greeting = self.receive()
        assert "QMP" in self.greeting, self.greeting
        self.command("qmp_capabilities")

    def execute(self, name: str, arguments: Optional[Mapping[str, Json]] = None) -> Message:
        """Send a command; its whole reply."""
        request: Message = {"execute": name}
        if arguments is not None:
            request["arguments"] = dict(arguments)
        self.send_bytes(json.dumps(request).encode() + b"\n")
        return self.reply()

    def command(self, name: str, /, **arguments: Json) -> Json:
        """Send a command; underscores in names of arguments stand for dashes. What it returns."""
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        reply = self.execute(name, named if named else None)
        if "error" in reply:
            raise QmpError(reply["error"])
        return reply["return"]

    def refuse(self, name: str, /, **arguments: Json) -> str:
        """Send a command that must be refused; the words of the refusal."""
        try:
            value = self.command(name, **arguments)
        except QmpError as error:
            return error.desc
        raise AssertionError(f"{name} was accepted: {value}")

    def wait_event(self, name: str, /, **data: Json) -> Message:
        """The next event of that name with that data, kept before or coming now."""
        deadline = Deadline()
        wanted = {key.replace("_", "-"): value for key, value in data.items()}
        while True:
            for event in self.events:
                have = event.get("data", {})
                if event["event"] == name and wanted.items() <= have.items():
                    self.events.remove(event)
                    return event
            message = self.receive(deadline)
            assert "event" in message, message
            self.events.append(message)


class Daemon:
    """A running storage daemon, Merino's or QEMU's, that serves QMP to the test."""

    def __init__(self, test: Test, program: str, *arguments: str, negotiate: bool = True) -> None:
        self.test = test
        self.socket_path = test.path(f"qmp-{test.serial()}.sock")
        self.stderr_path = test.path(f"stderr-{test.serial()}")
        # The test listens and the daemon connects, so there is nothing to wait for.
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(self.socket_path)
            listening.listen()
            listening.settimeout(DEADLINE_SECONDS)
            with open(self.stderr_path, "wb") as stderr:
                self.process = subprocess.Popen(
                    [program, "--chardev", f"socket,id=qmp,path={self.socket_path}",
                     *arguments, "--monitor", "qmp"],
                    stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, cwd=test.folder,
                )
            test.defer(self._reap)
            self.qmp = Qmp(self._accept(listening))
        test.defer(self.qmp.close)
        if negotiate:
            try:
                self.qmp.negotiate()
            except EndOfStream as end:
                self.wait()
                raise AssertionError(f"the daemon ended: {self.output()}") from end

    def _accept(self, listening: socket.socket) -> socket.socket:
        """The daemon's connection, unless it ends before."""
        with open_pidfd(self.process.pid) as end:
            ready, _, _ = select.select([listening, end], [], [], DEADLINE_SECONDS)
        if listening not in ready:
            raise AssertionError(f"the daemon did not come up: {self.output()}")
        return listening.accept()[0]

    def _reap(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def output(self) -> str:
        """What it wrote to standard output and standard error."""
        return Path(self.stderr_path).read_text(encoding="utf-8", errors="replace")

    def memory(self) -> int:
        """Bytes of resident memory."""
        with open(f"/proc/{self.process.pid}/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def connect(self, path: str, negotiate: bool = True) -> Qmp:
        """A further QMP session, over a server of the daemon."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(DEADLINE_SECONDS)
        connection.connect(path)
        qmp = Qmp(connection)
        self.test.defer(qmp.close)
        if negotiate:
            qmp.negotiate()
        return qmp

    def wait(self) -> int:
        """Its exit status, once it ends by itself."""
        return self.process.wait(timeout=DEADLINE_SECONDS)

    def quit(self) -> None:
        """End it by the command, and see that it ended well and silently."""
        self.qmp.command("quit")
        self.qmp.expect_end()
        self.check_end()

    def terminate(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it by a signal, and see that it ended well and silently."""
        self.process.send_signal(how)
        self.check_end()

    def kill(self, *images: str) -> None:
        """Not even a last word. The kernel may hold its files, with their locks, a little longer."""
        self.process.kill()
        self.process.wait()
        for image in images:
            with open(image, "r+b") as file:
                fcntl.lockf(file, fcntl.LOCK_EX)

    def check_end(self) -> None:
        status = self.wait()
        assert status == 0, f"exit status {status}: {self.output()}"
        assert self.output() == "", self.output()


@contextlib.contextmanager
def open_pidfd(pid: int) -> Iterator[int]:
    """A descriptor that becomes readable when the process ends."""
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class Test:
    """One test: its folder, and what is to be undone at its end, last first."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="merino-")
        self._undo = contextlib.ExitStack()
        self._serial = 0

    def __enter__(self) -> Test:
        self._undo.__enter__()
        self._undo.callback(shutil.rmtree, self.folder, ignore_errors=True)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._undo.__exit__(*exception)

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def serial(self) -> int:
        self._serial += 1
        return self._serial

    def defer(self, undo: Callable[[], object]) -> None:
        self._undo.callback(undo)

    def image(self, name: str, size: int, fill: bytes = b"") -> str:
        """A raw image of that size that begins with `fill`; its path."""
        path = self.path(name)
        with open(path, "wb") as image:
            image.write(fill)
            image.truncate(size)
        return path

    def daemon(self, *arguments: str, negotiate: bool = True) -> Daemon:
        return Daemon(self, merino_program("merino-storage-daemon"), *arguments,
                      negotiate=negotiate)

    def qemu_daemon(self, *arguments: str, negotiate: bool = True) -> Daemon:
        return Daemon(self, system_program("qemu-storage-daemon"), *arguments,
                      negotiate=negotiate)


TestFunction = Callable[[Test], None]


def _run_one(number: int, function: TestFunction) -> bool:
    name = (inspect.getdoc(function) or function.__name__).splitlines()[0]
    try:
        with Test() as test:
            function(test)
    except Skip as reason:
        print(f"ok {number} - {name} # SKIP {reason}", flush=True)
        return True
    except Exception:  # pylint: disable=broad-except
        for line in traceback.format_exc().splitlines():
            print(f"# {line}")
        print(f"not ok {number} - {name}", flush=True)
        return False
    print(f"ok {number} - {name}", flush=True)
    return True


def main(names: Mapping[str, Any]) -> None:
    """Run the test_* functions of a script in their order, or those whose names are given as
    arguments, and exit."""
    functions: list[TestFunction] = [
        value for name, value in names.items()
        if name.startswith("test_") and (len(sys.argv) == 1 or name in sys.argv[1:])
    ]
    print(f"1..{len(functions)}", flush=True)
    results = [_run_one(number, function) for number, function in enumerate(functions, 1)]
    sys.exit(0 if all(results) else 1)
