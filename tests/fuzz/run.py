#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Fuzz with libFuzzer: build in build-fuzz/, run each target for a while, end with a table.

    run.py [--seconds N] [--build FOLDER] [TARGET...]

Inputs that reach new code are kept in FOLDER/corpus/TARGET/, so that the next run goes on from there.
An input that makes a target fail is kept in FOLDER/found/; give it to the target's program to see the
failure again. The exit status tells whether there was any.
"""

import argparse
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).resolve().parent
ROOT = SOURCE.parent.parent
TARGETS = sorted(path.stem.removeprefix("fuzz-") for path in SOURCE.glob("fuzz-*.c"))

MAX_BYTES = 16384  # of an input
MAX_SECONDS = 20  # that one input may take
MAX_MEGABYTES = 2048

ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_stack_use_after_return=0",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
}


@dataclass
class Result:
    """What came of one target."""

    inputs: int = 0
    new: int = 0
    reached: int = 0  # counters of code
    found: list[str] = field(default_factory=list)
    log: str = ""


def run_or_exit(command: list[str], env: dict[str, str] | None = None) -> None:
    """Run a command that must work; what it says is shown when it does not."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.stderr.write(done.stdout)
        sys.exit(f"run.py: '{' '.join(command)}' failed")


def build(folder: Path, targets: list[str]) -> None:
    """Configure the tree for fuzzing and build the targets."""
    if not (folder / "build.ninja").exists():
        options = ["-Dfuzzing=true", "-Db_sanitize=address,undefined", "-Db_lundef=false"]
        run_or_exit(["meson", "setup", str(folder), str(ROOT), *options], {"CC": "clang"})
    programs = [f"tests/fuzz/fuzz-{target}" for target in targets]
    run_or_exit(["ninja", "-C", str(folder), *programs, "tests/fuzz/corpus"])


def numbers_of(log: str) -> tuple[int, int, int]:
    """Inputs run, inputs kept, code reached, from the words of libFuzzer."""
    runs = re.findall(r"number_of_executed_units:\s*(\d+)", log) or re.findall(r"^#(\d+)\t", log, re.M)
    new = re.findall(r"new_units_added:\s*(\d+)", log)
    reached = re.findall(r" cov: (\d+)", log)
    return (
        int(runs[-1]) if runs else 0,
        int(new[-1]) if new else 0,
        int(reached[-1]) if reached else 0,
    )


def fuzz(folder: Path, target: str, seconds: int) -> Result:
    """Run one target."""
    grown = folder / "corpus" / target
    found = folder / "found"
    seeds = [SOURCE / "corpus" / target, folder / "tests" / "fuzz" / "corpus" / target]
    grown.mkdir(parents=True, exist_ok=True)
    found.mkdir(exist_ok=True)
    command = [
        str(folder / "tests" / "fuzz" / f"fuzz-{target}"),
        f"-max_total_time={seconds}",
        f"-dict={SOURCE / target}.dict",
        f"-artifact_prefix={found}/{target}-",
        f"-max_len={MAX_BYTES}",
        f"-timeout={MAX_SECONDS}",
        f"-rss_limit_mb={MAX_MEGABYTES}",
        "-print_final_stats=1",
        str(grown),
        *[str(seed) for seed in seeds if seed.is_dir()],
    ]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    result = Result(*numbers_of(done.stdout), log=done.stdout)
    if done.returncode != 0:
        written = re.findall(r"Test unit written to (\S+)", done.stdout)
        result.found = written or [f"{target} ended with {done.returncode}"]
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=int, default=int(os.environ.get("FUZZ_SECONDS", "60")))
    parser.add_argument("--build", type=Path, default=ROOT / "build-fuzz")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    arguments = parser.parse_args()
    folder: Path = arguments.build.resolve()
    targets: list[str] = arguments.targets or TARGETS
    unknown = sorted(set(targets) - set(TARGETS))
    if unknown:
        parser.error(f"no such target: {', '.join(unknown)}")

    print(f"building in {folder}", flush=True)
    build(folder, targets)
    print(f"{'target':<20}{'inputs':>10}{'kept':>8}{'reached':>9}  found", flush=True)
    bad = False
    for target in targets:
        result = fuzz(folder, target, arguments.seconds)
        counts = f"{result.inputs:>10}{result.new:>8}{result.reached:>9}"
        print(f"{target:<20}{counts}  {' '.join(result.found) or '-'}", flush=True)
        if result.found:
            bad = True
            print(result.log[-6000:])
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
