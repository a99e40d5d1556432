# SPDX-License-Identifier: MIT
"""Samples in pairs, and the table that shows them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar


@dataclass
class Row:
    """One thing measured on both sides, in seconds or any unit where less is better."""

    what: str
    qemu: list[float]
    merino: list[float]
    unit: str = "us"

    def ratios(self) -> list[float]:
        """QEMU's sample over ours, pair by pair, sorted."""
        return sorted(q / m if m > 0 else float("inf") for q, m in zip(self.qemu, self.merino))


def interleave(rounds: int, qemu: Callable[[], float], merino: Callable[[], float]) -> Row:
    """Measure the two alternately, each first in every other round."""
    row = Row("", [], [])
    for number in range(rounds):
        if number % 2:
            row.qemu.append(qemu())
            row.merino.append(merino())
        else:
            row.merino.append(merino())
            row.qemu.append(qemu())
    return row


_filter: re.Pattern[str] | None = None


def choose_rows(pattern: str | None) -> None:
    """From now on only rows whose names match are wanted."""
    global _filter
    _filter = re.compile(pattern, re.IGNORECASE) if pattern else None


def wanted(what: str) -> bool:
    """Whether a row is to be measured."""
    return _filter is None or _filter.search(what) is not None


T = TypeVar("T")


def interleave_all(rounds: int, samplers: Sequence[Callable[[], T]]) -> list[list[T]]:
    """Measure any number in turns, in the reverse order in every other round."""
    samples: list[list[T]] = [[] for _ in samplers]
    for number in range(rounds):
        order = range(len(samplers)) if number % 2 else reversed(range(len(samplers)))
        for i in order:
            samples[i].append(samplers[i]())
    return samples


SCALE = {"us": 1e6, "ms": 1e3, "s": 1.0}


def show(title: str, rows: list[Row], other: str = "QEMU") -> None:
    """Print rows: medians, and the ratio's median and spread."""
    if not rows:
        return
    print(f"\n{title}", flush=True)
    print(f"   {'':<40}{other:>12}{'Merino':>12}   {other + ' / Merino (min .. max)'}")
    for row in rows:
        scale = SCALE.get(row.unit, 1.0)
        ratios = row.ratios()
        print(
            f"   {row.what:<40}{median(row.qemu) * scale:>9.1f} {row.unit:<2}"
            f"{median(row.merino) * scale:>9.1f} {row.unit:<2}"
            f"   {median(ratios):.2f} ({ratios[0]:.2f} .. {ratios[-1]:.2f})"
        )
