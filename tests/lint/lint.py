#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Rules of the tree that a machine can check. Prints TAP; one line a rule."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

# Rooms in the order in which they may use one another: a file includes its own row or an earlier
# one. docs/devel/architecture.md says what each room is for.
LAYERS: list[list[str]] = [
    ["util", "include/util"],
    ["qapi", "include/qapi"],
    ["net", "include/net"],
    ["block/bitmap", "include/block/dirty-bitmap.h"],
    ["block/core", "include/block"],
    ["block/copy", "include/block/copy.h", "block/drivers", "block/qcow2"],
    ["block/filters"],
    ["block/jobs", "include/block/job.h", "block/export", "include/block/export.h", "include/block/nbd.h"],
    ["block", "include/block/builtins.h"],
    ["monitor", "include/monitor"],
    ["lib", "include/merino", "storage-daemon", "tools"],
]

MAX_LINES = 800
LINT = "tests/lint/lint.py"


def tracked() -> list[str]:
    """The files of the tree as they stand: tracked ones, and new ones that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return sorted({name for name in listing.stdout.splitlines() if (ROOT / name).is_file()})


FILES = tracked()


def sources(*endings: str) -> Iterator[tuple[str, str]]:
    """Name and text of each file with one of the endings."""
    for name in FILES:
        if name.endswith(endings):
            yield name, (ROOT / name).read_text(encoding="utf-8")


def is_python(name: str) -> bool:
    """Whether a file is Python, by its ending or its first line."""
    if name.endswith(".py"):
        return True
    with open(ROOT / name, "rb") as file:
        return "." not in Path(name).name and file.readline().rstrip().endswith(b"python3")


def layer(name: str) -> int | None:
    """The row of the longest prefix of the path; None for files outside of the layering."""
    best: tuple[int, int] | None = None
    for row, prefixes in enumerate(LAYERS):
        for prefix in prefixes:
            if name == prefix or name.startswith(prefix + "/"):
                if best is None or len(prefix) > best[0]:
                    best = (len(prefix), row)
    return None if best is None else best[1]


def resolve(including: str, header: str) -> str | None:
    """The path of an included header that is in the tree."""
    for candidate in (Path(including).parent / header, Path("include") / header, Path(header)):
        if candidate.as_posix() in FILES_SET:
            return candidate.as_posix()
    return None


FILES_SET = set(FILES)


def check_layers() -> Iterator[str]:
    """Includes point downwards"""
    for name, text in sources(".c", ".h"):
        own = layer(name)
        if own is None:
            continue
        for header in re.findall(r'^#include "([^"]+)"', text, re.MULTILINE):
            target = resolve(name, header)
            row = None if target is None else layer(target)
            if row is not None and row > own:
                yield f"{name} includes {target}, which lies above it"


def check_licence() -> Iterator[str]:
    """Each file has one SPDX line"""
    line = re.compile(r"SPDX-License-Identifier: (\S+)")
    kinds = (".c", ".h", ".py", ".json", ".rst", ".md", "meson.build", "Makefile", ".sh", ".in")
    for name, text in sources(*kinds):
        if name == LINT or "/corpus/" in name:
            continue
        found = line.findall("\n".join(text.splitlines()[:3]))
        if found != ["MIT"]:
            yield f"{name}: {found or 'no line'} among its first three lines"


def check_length() -> Iterator[str]:
    """No source file is longer than can be read in a sitting"""
    for name, text in sources(".c", ".h", ".py"):
        lines = text.count("\n")
        if lines > MAX_LINES:
            yield f"{name}: {lines} lines, at most {MAX_LINES}"


def check_words() -> Iterator[str]:
    """No unfinished work and no path of one machine"""
    unfinished = re.compile(r"\b(TODO|FIXME|XXX)\b")
    machine = re.compile(r"[\"' =](/home/|/root/|/work/)")
    for name, text in sources(".c", ".h", ".py", ".rst", ".md", "meson.build", "Makefile", ".json"):
        if name == LINT:
            continue
        for number, content in enumerate(text.splitlines(), 1):
            if unfinished.search(content) or machine.search(content):
                yield f"{name}:{number}: {content.strip()[:80]}"


def check_cleanups() -> Iterator[str]:
    """What is cleaned up automatically has a value from the beginning"""
    bare = re.compile(r"^\s+g_auto(free\b|ptr\b|\()[^=;]*;$")
    for name, text in sources(".c", ".h"):
        for number, content in enumerate(text.splitlines(), 1):
            if bare.match(content):
                yield f"{name}:{number}: {content.strip()}"


def check_binaries() -> Iterator[str]:
    """No binary files outside of fuzz corpora"""
    for name in FILES:
        if "/corpus/" not in name and b"\0" in (ROOT / name).read_bytes()[:8192]:
            yield name


def check_format() -> Iterator[str]:
    """The layout of C is clang-format's"""
    names = [name for name in FILES if name.endswith((".c", ".h"))]
    command = ["clang-format", "--dry-run", *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    places = re.findall(r"^([^:\s]+):\d+:\d+: warning", done.stderr, re.MULTILINE)
    yield from sorted(set(places))


def check_python_types() -> Iterator[str]:
    """Python is type-annotated (mypy --strict)"""
    groups: dict[str, list[str]] = {}
    for name in FILES:
        if is_python(name):
            groups.setdefault(Path(name).parent.as_posix(), []).append(name)
    with tempfile.TemporaryDirectory(prefix="merino-mypy-") as cache:
        for folder, names in sorted(groups.items()):
            if folder.startswith("scripts/"):
                continue  # packages: checked with the program that imports them
            command = ["mypy", "--strict", "--no-error-summary", "--ignore-missing-imports"]
            command += ["--cache-dir", cache, "--scripts-are-modules", *names]
            env = {**os.environ, "MYPYPATH": f"{folder}:tests/qemu-iotests"}
            done = subprocess.run(
                command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
            )
            yield from (done.stdout + done.stderr).splitlines()


CHECKS: list[Callable[[], Iterator[str]]] = [
    check_layers,
    check_licence,
    check_length,
    check_words,
    check_cleanups,
    check_binaries,
    check_format,
    check_python_types,
]


def main() -> int:
    print(f"1..{len(CHECKS)}")
    bad = 0
    for number, check in enumerate(CHECKS, 1):
        findings = list(check())
        bad += bool(findings)
        print(f"{'not ok' if findings else 'ok'} {number} - {check.__doc__}")
        for finding in findings:
            print(f"# {finding}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
