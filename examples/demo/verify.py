# SPDX-License-Identifier: MIT
"""Was a restored image the disk at one instant? Judged from the guests' logs, byte for byte."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import guest


def copy_image(source: Path, target: Path) -> None:
    """Copy an image, keeping its holes, without copying its blocks where the file system can."""
    command = ["cp", "--sparse=always", "--reflink=auto", str(source), str(target)]
    subprocess.run(command, check=True)


@dataclass
class Instant:
    """When a view was frozen: between the sending of the command and its reply."""

    sent: float
    replied: float


class Verifier:
    """Knows the disk's first image and what each guest wrote."""

    def __init__(self, first_image: Path, logs: list[Path], scratch: Path):
        self._first_image = first_image
        self._scratch = scratch
        self._writes: list[list[tuple[int, float, float]]] = []  # block, issued, acknowledged
        for log in logs:
            issued: list[tuple[int, float, float]] = []
            for kind, number, block, when in guest.read_log(log):
                if kind == b"i":
                    issued.append((block, when, float("inf")))
                else:
                    issued[number - 1] = (block, issued[number - 1][1], when)
            self._writes.append(issued)

    def writes_between(self, start: float, end: float) -> int:
        """How many writes the guests had acknowledged in an interval."""
        return sum(start <= w[2] < end for writes in self._writes for w in writes)

    def check(self, image: Path, instant: Instant) -> None:
        """Fail unless `image` is the first image plus, of each guest, exactly its first K writes,
        where all that were acknowledged before the freeze are among them and none that
        was issued after it; and unless the file system in it is sound."""
        expected = self._scratch / "expected.img"
        copy_image(self._first_image, expected)
        with open(image, "rb") as restored, open(expected, "r+b") as model:
            for identity, writes in enumerate(self._writes):
                last = self._last_write(restored, identity, writes)
                before = sum(w[2] < instant.sent for w in writes)
                begun = sum(w[1] < instant.replied for w in writes)
                if not before <= last <= begun:
                    raise AssertionError(
                        f"{image.name}: guest {identity} is at write {last}, but {before} were "
                        f"acknowledged before the freeze and {begun} begun by its end"
                    )
                for number, (block, _, _) in enumerate(writes[:last], 1):
                    model.seek(block * guest.BLOCK)
                    model.write(guest.content(identity, number))
        subprocess.run(["cmp", image, expected], check=True)
        expected.unlink()
        done = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise AssertionError(f"e2fsck of {image.name}: {done.stdout}")

    @staticmethod
    def _last_write(restored: BinaryIO, identity: int, writes: list[tuple[int, float, float]]) -> int:
        """The newest write of a guest that the image shows."""
        last = 0
        for block in {w[0] for w in writes}:
            restored.seek(block * guest.BLOCK)
            stamp = guest.stamp_of(restored.read(guest.BLOCK))
            if stamp and stamp[0] == identity:
                last = max(last, stamp[1])
        return last
