# SPDX-License-Identifier: MIT
"""NBD over TLS with pre-shared keys: 1 MiB requests beside QEMU, nbdcopy being the client."""

import secrets
import subprocess
import time
from functools import partial
from pathlib import Path

from bench_nbd import FILE_SIZE, MIB, make_file
from servers import CpuClock, Daemon, Pair
from table import Row, interleave_all, show, wanted

ROUNDS = 5
USER = "bench"
CASES = ("TLS 1 MiB sequential read, depth 8", "TLS 1 MiB sequential write, depth 8")


def prepare(pair: Pair) -> None:
    """The same file and keys on both."""
    make_file(pair.folder / "file.raw")
    (pair.folder / "keys.psk").write_text(f"{USER}:{secrets.token_hex(32)}\n", encoding="ascii")
    for daemon in (pair.qemu, pair.merino):
        daemon.qmp("object-add", qom_type="tls-creds-psk", id="tls", dir=str(pair.folder),
                   endpoint="server")
        daemon.qmp("nbd-server-stop")
        daemon.qmp("nbd-server-start", tls_creds="tls",
                   addr={"type": "unix", "data": {"path": str(daemon.nbd_socket)}})
        daemon.qmp("blockdev-add", driver="file", node_name="file", locking="off",
                   filename=str(pair.folder / "file.raw"))
        daemon.qmp("block-export-add", type="nbd", id="file", node_name="file", name="file",
                   writable=True)


def copy(folder: Path, daemon: Daemon, case: str) -> tuple[float, float]:
    """Seconds, and CPU seconds of the server, of one request."""
    disk = (f"nbds+unix://{USER}@/file?socket={daemon.nbd_socket}"
            f"&tls-psk-file={folder / 'keys.psk'}")
    files = [disk, "null:"] if "read" in case else [str(folder / "other.raw"), disk]
    clock = CpuClock(daemon.process.pid)
    start = time.perf_counter()
    subprocess.run(["nbdcopy", "--connections=1", "--requests=8", f"--request-size={MIB}",
                    "--sparse=0", "--allocated", *files], check=True)
    count = FILE_SIZE // MIB
    return (time.perf_counter() - start) / count, clock.seconds() / count


def run(program: str) -> None:
    """All of it."""
    rows: list[Row] = []
    cases = [case for case in CASES if wanted(case)]
    if not cases:
        return
    with Pair(program) as pair:
        prepare(pair)
        make_file(pair.folder / "other.raw")
        for case in cases:
            qemu, merino = interleave_all(ROUNDS, [partial(copy, pair.folder, daemon, case)
                                                   for daemon in (pair.qemu, pair.merino)])
            rows.append(Row(case, [time for time, _ in qemu], [time for time, _ in merino]))
            rows.append(Row("   CPU of the server", [cpu for _, cpu in qemu],
                            [cpu for _, cpu in merino]))
    show("NBD over TLS (nbdcopy), time of one request", rows)
