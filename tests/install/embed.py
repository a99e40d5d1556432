#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""The library as a user meets it: installed, found by pkg-config, linked statically and shared.

    embed.py BUILD-FOLDER

Prints TAP.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
EXPECTED = """\
dirty: 4096 bytes at 0
dirty: 12288 bytes at 1048576
dirty: 65536 bytes at 2097152
"""


def install(build: Path, root: Path) -> dict[str, str]:
    """Install into a folder; returns the environment in which it is found there."""
    command = ["meson", "install", "-C", str(build), "--no-rebuild", "--quiet"]
    subprocess.run(command, check=True, env={**os.environ, "DESTDIR": str(root)})
    packages = sorted(root.rglob("merino.pc"))
    assert packages, "no merino.pc was installed"
    library = packages[0].parent.parent
    return {
        **os.environ,
        "PKG_CONFIG_PATH": str(packages[0].parent),
        "PKG_CONFIG_SYSROOT_DIR": str(root),
        "LD_LIBRARY_PATH": str(library),
    }


def compile_example(folder: Path, env: dict[str, str], static: bool) -> Path:
    """Compile examples/embed.c against the installed copy."""
    program = folder / ("embed-static" if static else "embed")
    command = ["pkg-config", "--cflags", "--libs", "merino", *(["--static"] if static else [])]
    listed = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    flags = listed.stdout.split()
    if static:
        flags = ["-l:libmerino.a" if flag == "-lmerino" else flag for flag in flags]
    compiler = ["cc", "-Wall", "-Wextra", "-Werror", str(ROOT / "examples" / "embed.c")]
    subprocess.run([*compiler, "-o", str(program), *flags], env=env, check=True)
    return program


def run_example(program: Path, folder: Path, env: dict[str, str]) -> str:
    """What the example prints for a new disk."""
    disk = folder / "disk.img"
    with open(disk, "wb") as file:
        file.truncate(64 << 20)
    done = subprocess.run([program, disk], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with open(disk, "rb") as file:
        file.seek(1 << 20)
        assert file.read(10000) == b"\xa5" * 10000, "the write is not in the file"
    return done.stdout


def main() -> int:
    build = Path(sys.argv[1])
    failed = 0
    print("1..2")
    with tempfile.TemporaryDirectory(prefix="merino-install-") as name:
        folder = Path(name)
        env = install(build, folder / "root")
        for number, static in enumerate([False, True], 1):
            kind = "static" if static else "shared"
            try:
                output = run_example(compile_example(folder, env, static), folder, env)
                assert output == EXPECTED, output
                print(f"ok {number} - a program with the {kind} library lists what is dirty")
            except (AssertionError, subprocess.CalledProcessError) as error:
                failed += 1
                print(f"not ok {number} - a program with the {kind} library lists what is dirty")
                print("# " + str(error).replace("\n", "\n# "))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
