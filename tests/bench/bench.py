#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Speed beside QEMU's programs: runs each benchmark and prints its table.

Both sides are measured alternately, so that what else the machine does falls on both; what counts
are the ratios. Nothing here asserts a time.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

# pylint: disable=wrong-import-position
import bench_bitmaps
import bench_fleecing
import bench_nbd
import bench_qcow2
import bench_qmp
import bench_tls
from table import choose_rows

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build-bench"
DAEMON = BUILD / "storage-daemon" / "merino-storage-daemon"


def build() -> None:
    """An optimised build, as `make install` users would have it."""
    if not (BUILD / "build.ninja").exists():
        command = ["meson", "setup", str(BUILD), "--buildtype=release", "-Db_ndebug=true"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["ninja", "-C", str(BUILD), "--quiet"], check=True, stdout=subprocess.DEVNULL)


def in_process() -> None:
    """Bitmap operations inside one process."""
    subprocess.run([str(BUILD / "tests" / "bench" / "bench-hbitmap")], check=True)


BENCHMARKS: dict[str, Callable[[], None]] = {
    "bitmap": in_process,
    "qmp": lambda: bench_qmp.run(str(DAEMON)),
    "qcow2": lambda: bench_qcow2.run(str(DAEMON)),
    "nbd": lambda: bench_nbd.run(str(DAEMON)),
    "tls": lambda: bench_tls.run(str(DAEMON)),
    "bitmaps": lambda: bench_bitmaps.run(str(DAEMON)),
    "fleecing": lambda: bench_fleecing.run(str(DAEMON)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help=f"which benchmarks, of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--rows", metavar="REGEX",
                        help="of the NBD and bitmap tables, only rows whose names match")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}")
    choose_rows(arguments.rows)
    build()
    for name in arguments.names or BENCHMARKS:
        BENCHMARKS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
