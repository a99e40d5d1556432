# SPDX-License-Identifier: MIT
"""The two daemons that are measured, side by side, and a QMP client with little overhead."""

import json
import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol


class Server(Protocol):
    """A process that serves NBD on a unix socket."""

    name: str
    nbd_socket: Path
    process: "subprocess.Popen[bytes]"


def process_cpu_seconds(process: "subprocess.Popen[bytes]") -> float:
    """User and system time that a process has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii").split()
    return (int(fields[13]) + int(fields[14])) / 100


class CpuClock:
    """CPU time that a process uses from here on, thread by thread where the kernel tells."""

    def __init__(self, pid: int):
        self._pid = pid
        self._before = self._threads()
        self._total_before = self._total()

    def _threads(self) -> dict[str, int]:
        threads = {}
        for path in Path(f"/proc/{self._pid}/task").glob("*/schedstat"):
            try:
                threads[path.parent.name] = int(path.read_text(encoding="ascii").split()[0])
            except OSError:
                pass  # the thread has ended
        return threads

    def _total(self) -> float:
        text = Path(f"/proc/{self._pid}/stat").read_text(encoding="ascii")
        fields = text.rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def seconds(self) -> float:
        """What was used. Threads that have ended count by the kernel's coarser clock."""
        threads = self._threads()
        if not set(self._before) <= set(threads) or not threads:
            return self._total() - self._total_before
        fine = sum(used - self._before.get(name, 0) for name, used in threads.items()) / 1e9
        return max(fine, self._total() - self._total_before - 2 / os.sysconf("SC_CLK_TCK"))


class Daemon:
    """A storage daemon (ours or QEMU's: same command line) with a QMP session."""

    def __init__(self, name: str, program: str, folder: Path, quiet: bool = False):
        self.name = name
        self.nbd_socket = folder / f"{name}.nbd"
        control = folder / f"{name}.qmp"
        # The bench listens and the daemon connects, so there is nothing to wait for.
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(control))
            listening.listen()
            listening.settimeout(10)
            self.process = subprocess.Popen(
                [program]
                + ["--chardev", f"socket,id=qmp,path={control}", "--monitor", "chardev=qmp"]
                + ["--nbd-server", f"addr.type=unix,addr.path={self.nbd_socket},max-connections=0"],
                stderr=subprocess.DEVNULL if quiet else None,
            )
            self._socket = listening.accept()[0]
        self._buffer = b""
        self._events: set[str] = set()
        self._line()
        self.qmp("qmp_capabilities")

    def _line(self) -> bytes:
        while b"\n" not in self._buffer:
            more = self._socket.recv(1 << 16)
            if not more:
                raise ConnectionError(f"{self.name} closed its QMP session")
            self._buffer += more
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a command; underscores in argument names stand for dashes."""
        return self.send(self.message(command, **arguments))[0]

    @staticmethod
    def message(command: str, **arguments: Any) -> bytes:
        """The bytes of a command."""
        message: dict[str, Any] = {"execute": command}
        if arguments:
            message["arguments"] = {k.replace("_", "-"): v for k, v in arguments.items()}
        return json.dumps(message).encode() + b"\n"

    def send(self, message: bytes) -> tuple[Any, float]:
        """Send a command's bytes; returns its result and the seconds until its reply was there."""
        start = time.perf_counter()
        self._socket.sendall(message)
        line = self._line()
        took = time.perf_counter() - start
        while b'"event"' in line[:120]:
            self._events.add(json.loads(line)["event"])
            line = self._line()
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(f"{self.name}: {reply['error']['desc']}")
        return reply["return"], took

    def wait_event(self, name: str) -> None:
        """Read messages until an event of this name came, or had come during a command."""
        while name not in self._events:
            message = json.loads(self._line())
            if "event" in message:
                self._events.add(message["event"])
        self._events.remove(name)

    def cpu_seconds(self) -> float:
        """User and system time that the process has used."""
        return process_cpu_seconds(self.process)

    def memory(self) -> int:
        """Bytes resident that are the process's own."""
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(text.split("RssAnon:")[1].split()[0]) * 1024

    def uri(self, export: str) -> str:
        """Where NBD clients find an export."""
        return f"nbd+unix:///{export}?socket={self.nbd_socket}"

    def close(self) -> None:
        """End the daemon."""
        self._socket.close()
        self.process.terminate()
        self.process.wait(30)


class Pair:
    """Our daemon and QEMU's, for one measurement."""

    def __init__(self, ours: str, qemus: str = "qemu-storage-daemon", quiet: bool = False):
        self._folder = tempfile.TemporaryDirectory(prefix="merino-bench-")
        folder = Path(self._folder.name)
        self.qemu = Daemon("qemu", qemus, folder, quiet)
        self.merino = Daemon("merino", ours, folder, quiet)
        self.folder = folder

    def __enter__(self) -> "Pair":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.qemu.close()
        self.merino.close()
        self._folder.cleanup()

    def both(self, command: str, **arguments: Any) -> None:
        """The same command on both."""
        self.qemu.qmp(command, **arguments)
        self.merino.qmp(command, **arguments)
