# SPDX-License-Identifier: MIT
"""What the demo shows a person: sizes, a line that pictures a dirty map, headings."""

import json
import sys
from typing import Any

COLOUR = sys.stdout.isatty()
SHADES = "·░▒▓█"


def paint(text: str, code: str) -> str:
    """Text in a colour, where the terminal has any."""
    return f"\033[{code}m{text}\033[0m" if COLOUR else text


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def dirty_map(extents: list[tuple[int, int]], disk_size: int, columns: int = 56) -> str:
    """One line for the whole disk: how dirty each of its parts is."""
    share = [0.0] * columns
    for offset, length in extents:
        while length > 0:
            column = min(offset * columns // disk_size, columns - 1)
            end = -(-(column + 1) * disk_size // columns)
            part = min(length, end - offset)
            share[column] += part * columns / disk_size
            offset += part
            length -= part
    marks = [SHADES[0] if s == 0 else SHADES[min(4, 1 + int(s * 4))] for s in share]
    return "".join(marks)


def heading(text: str) -> None:
    """A step of the story."""
    print("\n" + paint(text, "1"), flush=True)


def note(text: str) -> None:
    """A fact below a heading."""
    print("   " + text, flush=True)


def message(sent: dict[str, Any]) -> None:
    """A QMP command as it was sent; a transaction's actions each on a line."""
    arguments = sent.get("arguments", {})
    if sent["execute"] == "transaction":
        print(paint('   -> {"execute": "transaction", "arguments": {"actions": [', "36"))
        actions = [json.dumps(action) for action in arguments["actions"]]
        for text in ",\n".join(actions).split("\n"):
            print(paint("        " + text, "36"))
        print(paint("      ]}}", "36"), flush=True)
    else:
        print(paint("   -> " + json.dumps(sent), "36"), flush=True)
