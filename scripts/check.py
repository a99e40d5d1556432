#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Build the tree, run every test, and end with the true count.

The plain developer build runs all suites. The sanitizer builds run the suites where a fault of
memory or of threads would show; they leave out tests in which nothing of that kind can be: those of
Python alone, and from the threads' build long ones of one thread. Results are read from meson's
JUnit files, where each TAP line is one test; a program that times out or dies is one failed test
more. What failed is named at the end, with the last words of its program. The last line printed is
`N passed, N failed, N skipped`, alone.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# How much of a failed program's output is shown with the summary.
LAST_LINES = 12

# Characters that XML cannot hold, though meson writes them.
NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


@dataclass
class Variant:
    """One build of the tree and the suites that it runs."""

    name: str
    options: list[str]
    suites: list[str]  # empty: all
    without: list[str] = field(default_factory=list)  # suites whose tests it leaves out
    env: dict[str, str] = field(default_factory=dict)
    multiple: int = 1  # of the tests' time limits, for slower code

    @property
    def folder(self) -> Path:
        return ROOT / ("build" if self.name == "plain" else f"build-{self.name}")


VARIANTS = [
    Variant("plain", [], []),
    Variant(
        "asan",
        ["-Db_sanitize=address,undefined", "-Db_lundef=false"],
        ["unit", "iotests", "interop", "fuzz", "stress", "crash", "twin"],
        ["python"],
        {
            "ASAN_OPTIONS": "detect_stack_use_after_return=0:abort_on_error=1",
            "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
            "MERINO_CRASH_CUTS": "10",
            "MERINO_CRASH_STRIDE": "8",
            "MERINO_TWIN_STEPS": "300",
        },
        4,
    ),
    Variant(
        "tsan",
        ["-Db_sanitize=thread", "-Db_lundef=false"],
        ["unit", "stress"],
        ["python", "one-thread"],
        {"TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1"},
        8,
    ),
]


@dataclass
class Tally:
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    problems: list[str] = field(default_factory=list)
    skips: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.problems += other.problems
        self.skips += other.skips


def read_junit(path: Path, variant: str) -> Tally:
    """Count the test cases of one meson run."""
    tally = Tally()
    text = path.read_text(encoding="utf-8", errors="replace")
    text = NOT_XML.sub("?", text)  # what tests print of hostile input
    for case in ElementTree.fromstring(text).iter("testcase"):
        name = f"[{variant}] {case.get('classname', '')}: {case.get('name', '')}"
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            tally.failed += 1
            tally.problems.append(name)
        elif skip is not None:
            tally.skipped += 1
            tally.skips.append(f"{name} {skip.get('message') or skip.text or ''}".rstrip())
        else:
            tally.passed += 1
    return tally


def last_words(entry: dict[str, object]) -> list[str]:
    """The end of what a test program printed, indented."""
    output = f"{entry.get('stdout') or ''}\n{entry.get('stderr') or ''}"
    lines = [line for line in output.splitlines() if line.strip()]
    return [f"    {line[:200]}" for line in lines[-LAST_LINES:]]


def add_programs(tally: Tally, path: Path, variant: str) -> None:
    """Name the programs that did not end well, which JUnit may not tell (a time-out, a crash)."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        entry = json.loads(line)
        name, result = str(entry["name"]), str(entry["result"])
        if result in ("OK", "SKIP", "EXPECTEDFAIL"):
            continue
        named = any(name in problem for problem in tally.problems)
        if not named:
            tally.failed += 1
        tally.problems.append(f"[{variant}] {name}: {result} after {entry['duration']:.0f} s")
        tally.problems += last_words(entry)


def run(command: list[str], env: dict[str, str] | None = None, quiet: bool = True) -> int:
    """Run a command; its output is shown when it fails, or at once."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
        text=True,
        errors="replace",
    )
    if quiet and done.returncode != 0:
        sys.stdout.write(done.stdout)
    return done.returncode


def prepare(variant: Variant) -> bool:
    """Configure and build one variant."""
    if not (variant.folder / "build.ninja").exists():
        command = ["meson", "setup", str(variant.folder), "-Dwerror=true", *variant.options]
        if run(command) != 0:
            return False
    return run(["ninja", "-C", str(variant.folder), "--quiet"]) == 0


def test(variant: Variant) -> Tally:
    """Run one variant's tests."""
    log = variant.folder / "meson-logs" / "testlog.junit.xml"
    log.unlink(missing_ok=True)
    command = ["meson", "test", "-C", str(variant.folder), "--no-rebuild", "--print-errorlogs"]
    command += ["--timeout-multiplier", str(variant.multiple)]
    for suite in variant.suites:
        command += ["--suite", suite]
    for suite in variant.without:
        command += ["--no-suite", suite]
    code = run(command, env=variant.env, quiet=False)
    if not log.exists():
        return Tally(failed=1, problems=[f"[{variant.name}] meson test gave no results"])
    tally = read_junit(log, variant.name)
    add_programs(tally, log.with_name("testlog.json"), variant.name)
    if code != 0 and tally.failed == 0:
        tally.failed += 1
        tally.problems.append(f"[{variant.name}] meson test ended with {code}")
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the plain build alone")
    arguments = parser.parse_args()

    total = Tally()
    rows: list[tuple[str, Tally, float]] = []
    for variant in VARIANTS[:1] if arguments.quick else VARIANTS:
        started = time.monotonic()
        print(f"== {variant.name}: building in {variant.folder.name}/", flush=True)
        if prepare(variant):
            tally = test(variant)
        else:
            tally = Tally(failed=1, problems=[f"[{variant.name}] the build failed"])
        rows.append((variant.name, tally, time.monotonic() - started))
        total.add(tally)

    print(f"\n{'build':<8}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}")
    for name, tally, seconds in rows:
        print(f"{name:<8}{tally.passed:>8}{tally.failed:>8}{tally.skipped:>9}{seconds:>9.0f}")
    for skip in total.skips:
        print(f"skipped: {skip}")
    for problem in total.problems:
        print(problem if problem.startswith(" ") else f"FAILED: {problem}")
    print(f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped")
    return 1 if total.failed or not total.passed else 0


if __name__ == "__main__":
    sys.exit(main())
