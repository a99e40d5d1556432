# SPDX-License-Identifier: MIT
"""What each bitmap and each view must hold, from the guests' logs and the times of the commands.

A command takes effect at one instant between its sending and its reply; an operation of a guest
between its issue and its acknowledgement. Where the order of two is not known from that, both
are right; everywhere else only one is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from guest import BLOCK, NEVER, Operation, stamp_of


@dataclass(frozen=True)
class Moment:
    """When a command took effect: not before `sent`, not after `replied`."""

    sent: float
    replied: float


@dataclass(frozen=True)
class Span:
    """Time in which a bitmap recorded."""

    start: Moment
    end: Moment | None = None

    def must_hold(self, operation: Operation) -> bool:
        """Whether the operation fell wholly inside."""
        inside = operation.issued >= self.start.replied
        return inside and (self.end is None or operation.acknowledged <= self.end.sent)

    def may_hold(self, operation: Operation) -> bool:
        """Whether a part of the operation fell inside."""
        touches = operation.acknowledged >= self.start.sent
        return touches and (self.end is None or operation.issued <= self.end.replied)


@dataclass
class Bitmap:
    """A bitmap of the daemon, by the spans whose operations it holds."""

    name: str
    disk: int
    granularity: int
    enabled: bool
    spans: list[Span] = field(default_factory=list)
    # What merging from coarser bitmaps added: operations become dirty in whole granules of those.
    coarse: list[tuple[Span, int]] = field(default_factory=list)

    def start(self, moment: Moment) -> None:
        """It records from now on."""
        self.enabled = True
        self.spans.append(Span(moment))

    def stop(self, moment: Moment) -> None:
        """It records no more."""
        self.spans = self._closed(moment)
        self.enabled = False

    def clear(self, moment: Moment) -> None:
        """What it holds is forgotten."""
        self.spans, self.coarse = ([Span(moment)] if self.enabled else []), []

    def merge(self, source: Bitmap, moment: Moment) -> None:
        """It gets all that the source holds."""
        found = [(span, source.granularity) for span in source._closed(moment)]
        found += [(span, max(size, source.granularity)) for span, size in source.coarse]
        self.coarse += found

    def copy(self) -> Bitmap:
        """An independent copy."""
        return replace(self, spans=list(self.spans), coarse=list(self.coarse))

    def _closed(self, moment: Moment) -> list[Span]:
        return [span if span.end else Span(span.start, moment) for span in self.spans]

    def bounds(self, operations: list[Operation]) -> tuple[set[int], set[int]]:
        """The blocks (of 4 KiB) that must be dirty, and those that may be."""
        must: set[int] = set()
        may: set[int] = set()
        parts = [(span, self.granularity) for span in self.spans] + self.coarse
        for span, granularity in parts:
            for operation in operations:
                if operation.disk == self.disk and span.may_hold(operation):
                    blocks = self._spread(operation.block, granularity)
                    may |= blocks
                    if span.must_hold(operation):
                        must |= blocks
        return must, may

    def check(self, dirty: set[int], operations: list[Operation]) -> None:
        """Compare with the blocks that the daemon calls dirty."""
        must, may = self.bounds(operations)
        if must - dirty:
            raise AssertionError(f"{self.name} misses blocks {sorted(must - dirty)[:8]}")
        if dirty - may:
            raise AssertionError(f"{self.name} has clean blocks dirty: {sorted(dirty - may)[:8]}")

    def _spread(self, block: int, granularity: int) -> set[int]:
        """The blocks that become dirty with a block: its granule's, at each stage."""
        size = max(granularity, self.granularity, BLOCK) // BLOCK
        first = block - block % size
        return set(range(first, first + size))


def check_view(
    stamps: list[dict[int, int]], moment: Moment, lane: int, operations: list[Operation]
) -> None:
    """A view of all disks (block to stamp, a dict each) must be the state after the first K
    operations of the lane, for one K that the moment allows."""
    before = sum(operation.acknowledged < moment.sent for operation in operations)
    begun = sum(operation.issued < moment.replied for operation in operations)
    state: dict[tuple[int, int], int] = {}
    for operation in operations[:before]:
        state[operation.disk, operation.block] = operation.stamp
    for count in range(before, begun + 1):
        if count > before:
            operation = operations[count - 1]
            state[operation.disk, operation.block] = operation.stamp
        if all(stamps[disk][block] == stamp for (disk, block), stamp in state.items()):
            shown = {(d, b) for d, found in enumerate(stamps) for b, s in found.items() if s}
            if shown <= state.keys():
                return
    raise AssertionError(f"lane {lane}: the view is no state between {before} and {begun}")


def in_flight_limit(operations: list[Operation]) -> int:
    """How many operations were never acknowledged."""
    return sum(operation.acknowledged == NEVER for operation in operations)


def check_image(image: bytes, disk: int, lanes: int, operations: list[Operation]) -> None:
    """What is left of a disk: the last acknowledged operation on each block, or one after it that
    was in flight when the daemon ended."""
    blocks: dict[int, set[int]] = {}
    for operation in operations:
        if operation.disk != disk:
            continue
        if operation.acknowledged != NEVER:
            blocks[operation.block] = {operation.stamp}
        else:
            blocks.setdefault(operation.block, {0}).add(operation.stamp)
    for block, stamps in blocks.items():
        found = stamp_of(image[block * BLOCK : (block + 1) * BLOCK], block % lanes)
        assert found in stamps, f"disk {disk} block {block}: {found}, not one of {stamps}"
