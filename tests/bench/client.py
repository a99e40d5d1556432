# SPDX-License-Identifier: MIT
"""The small NBD client in C that the measurements use."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from servers import Server

PROGRAM = (Path(__file__).resolve().parent.parent.parent / "build-bench" / "tests" / "bench"
           / "bench-nbd")


@dataclass
class Done:
    """What a run came to; latencies in microseconds."""

    count: int  # requests, or extents
    seconds: float
    median_us: float
    p99_us: float


def command(server: Server, export: str, mode: str, **options: str | int | float | bool) -> list[str]:
    """The command line of a run; flags are options that are True."""
    words = [str(PROGRAM), str(server.nbd_socket), export, mode]
    for name, value in options.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not False:
            words.append(f"--{name}={value}")
    return words


def run_client(server: Server, export: str, mode: str, **options: str | int | float | bool) -> Done:
    """Run it to its end."""
    output = subprocess.run(command(server, export, mode, **options), check=True,
                            stdout=subprocess.PIPE, text=True).stdout.split()
    return Done(int(output[0]), float(output[1]), float(output[2]), float(output[3]))
