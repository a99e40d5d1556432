#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Repeat the QMP transcripts of documents, and compare what comes with what they say. Prints TAP.

    test-transcripts.py DAEMON DOCUMENT...

A document is one session. Its code blocks are transcripts when a line in them begins with `->`, `<-`
or `$`; what is indented further continues a line. `$ merino-storage-daemon ...` starts DAEMON with
QMP on its standard input and output; other `$` commands run in a shell, in the session's own
folder, and what they print is compared with the lines below them. `->` is sent, `<-` is the reply,
or an event, waited for. In JSON, `...` stands for any further members, elements, or any value; in the
output of commands for any text.

Each code block is one test.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DAEMON = "merino-storage-daemon"
ANYTHING = "..."
TIMEOUT_S = 60


@dataclass
class Step:
    """One line of a transcript with its continuations."""

    kind: str  # "->", "<-" or "$"
    text: str
    output: str  # expected of a command


@dataclass
class Block:
    line: int
    steps: list[Step]


class Mismatch(Exception):
    """What came is not what the document says."""


# --- documents ---


def literal_blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """The code blocks: the line number of each, and its lines without their common indent."""
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        at += 1
        if not lines[at - 1].startswith(".. code-block::"):
            continue
        while at < len(lines) and not lines[at].strip():
            at += 1
        first = at
        while at < len(lines) and (lines[at].startswith(" ") or not lines[at].strip()):
            at += 1
        yield first + 1, textwrap.dedent("\n".join(lines[first:at])).splitlines()


def steps_of(lines: list[str]) -> list[Step]:
    """Lines that begin a step, each with those that continue it."""
    steps: list[Step] = []
    for line in lines:
        begin = re.match(r"(->|<-|\$) (.*)", line)
        if begin:
            steps.append(Step(begin[1], begin[2], ""))
        elif not steps:
            return []
        elif steps[-1].kind != "$":
            steps[-1].text += "\n" + line
        elif steps[-1].text.startswith(DAEMON) or steps[-1].text.endswith("\\"):
            steps[-1].text = steps[-1].text.removesuffix("\\") + " " + line.strip()
        else:
            steps[-1].output += line + "\n"
    return steps


def blocks_of(document: Path) -> list[Block]:
    found = literal_blocks(document.read_text(encoding="utf-8"))
    blocks = [Block(line, steps_of(lines)) for line, lines in found]
    return [block for block in blocks if block.steps]


# --- patterns ---


def parse_pattern(text: str) -> Any:
    """JSON in which a bare `...` becomes the member "...": null, or the string "..."."""
    out: list[str] = []
    nesting: list[str] = []
    for token in re.findall(r'"(?:[^"\\]|\\.)*"|\.\.\.|[^".]+|\.', text):
        if token == ANYTHING:
            before = "".join(out).rstrip()
            is_member = bool(nesting) and nesting[-1] == "{" and before[-1:] in "{,"
            out.append('"...": null' if is_member else '"..."')
            continue
        out.append(token)
        if not token.startswith('"'):
            for char in token:
                if char in "{[":
                    nesting.append(char)
                elif char in "}]":
                    nesting.pop()
    return json.loads("".join(out))


def matches(pattern: Any, value: Any) -> bool:
    if pattern == ANYTHING:
        return True
    if isinstance(pattern, dict) and isinstance(value, dict):
        wanted = {name: item for name, item in pattern.items() if name != ANYTHING}
        if ANYTHING not in pattern and wanted.keys() != value.keys():
            return False
        return all(name in value and matches(item, value[name]) for name, item in wanted.items())
    if isinstance(pattern, list) and isinstance(value, list):
        return matches_list(pattern, value)
    return type(pattern) is type(value) and bool(pattern == value)


def matches_list(pattern: list[Any], value: list[Any]) -> bool:
    if not pattern:
        return not value
    if pattern[0] == ANYTHING:
        return any(matches_list(pattern[1:], value[skip:]) for skip in range(len(value) + 1))
    return bool(value) and matches(pattern[0], value[0]) and matches_list(pattern[1:], value[1:])


def matches_output(pattern: str, output: str) -> bool:
    def words(text: str) -> str:
        return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())

    parts = (re.escape(part) for part in words(pattern).split(ANYTHING))
    return re.fullmatch(".*".join(parts), words(output), re.DOTALL) is not None


# --- sessions ---


class Session:
    """A daemon, its QMP connection and its folder."""

    def __init__(self, daemon: str) -> None:
        self.daemon = daemon
        self.folder = tempfile.TemporaryDirectory(prefix="merino-docs-")
        self.process: subprocess.Popen[str] | None = None
        self.events: list[Any] = []

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.folder.cleanup()

    def start(self, arguments: str) -> None:
        command = [self.daemon, *arguments.split()]
        self.process = subprocess.Popen(command, cwd=self.folder.name, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self, command: str, output: str) -> None:
        done = subprocess.run(["/bin/sh", "-c", command], cwd=self.folder.name, text=True,
                              timeout=TIMEOUT_S, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode != 0 or not matches_output(output, done.stdout):
            raise Mismatch(f"$ {command}\nended with {done.returncode} and printed\n{done.stdout}")

    def send(self, text: str) -> None:
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(json.dumps(json.loads(text)) + "\n")
        self.process.stdin.flush()

    def receive(self) -> Any:
        assert self.process is not None and self.process.stdout is not None
        watchdog = threading.Timer(TIMEOUT_S, self.process.kill)
        watchdog.start()
        line = self.process.stdout.readline()
        watchdog.cancel()
        if not line:
            raise Mismatch(f"the daemon ended with {self.process.wait()}")
        return json.loads(line)

    def expect_reply(self, pattern: Any) -> None:
        while "event" in (message := self.receive()):
            self.events.append(message)
        if not matches(pattern, message):
            raise Mismatch(f"expected {json.dumps(pattern)}\ngot {json.dumps(message)}")

    def expect_event(self, pattern: Any) -> None:
        for seen in self.events:
            if matches(pattern, seen):
                self.events.remove(seen)
                return
        while not matches(pattern, message := self.receive()):
            if "event" not in message:
                raise Mismatch(f"expected {json.dumps(pattern)}\ngot {json.dumps(message)}")
            self.events.append(message)

    def play(self, step: Step) -> None:
        if step.kind == "->":
            self.send(step.text)
        elif step.kind == "<-":
            pattern = parse_pattern(step.text)
            expect = self.expect_event if "event" in pattern else self.expect_reply
            expect(pattern)
        elif step.text.startswith(DAEMON):
            self.start(step.text.removeprefix(DAEMON))
        else:
            self.run(step.text, step.output)


# --- TAP ---


def missing_program(blocks: list[Block]) -> str | None:
    for block in blocks:
        for step in block.steps:
            program = step.text.split()[0]
            if step.kind == "$" and program != DAEMON and shutil.which(program) is None:
                return program
    return None


class Tap:
    def __init__(self) -> None:
        self.count = 0
        self.ok = True

    def result(self, ok: bool, name: str) -> None:
        self.count += 1
        self.ok = self.ok and ok
        print(f"{'ok' if ok else 'not ok'} {self.count} - {name}", flush=True)


def play_document(tap: Tap, daemon: str, document: Path) -> None:
    blocks = blocks_of(document)
    missing = missing_program(blocks)
    if missing is not None:
        tap.result(True, f"{document.name} # SKIP {missing} is not installed")
        return
    session = Session(daemon)
    broken = False
    for block in blocks:
        failure = "an earlier part failed" if broken else ""
        try:
            for step in block.steps if not broken else []:
                session.play(step)
        except (Mismatch, OSError, ValueError, subprocess.TimeoutExpired) as error:
            failure = str(error)
        tap.result(not failure, f"{document.name} from line {block.line}")
        broken = bool(failure)
        for line in failure.splitlines():
            print(f"# {line}")
    session.close()


def main() -> int:
    tap = Tap()
    daemon = str(Path(sys.argv[1]).resolve())
    for name in sys.argv[2:]:
        play_document(tap, daemon, Path(name))
    print(f"1..{tap.count}")
    return 0 if tap.ok else 1


if __name__ == "__main__":
    sys.exit(main())
