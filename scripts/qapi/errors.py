# SPDX-License-Identifier: MIT
"""Places in schema files, and errors that name them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A line of a schema file."""

    path: str
    line: int

    def __str__(self) -> str:
        return f'{self.path}:{self.line}'


BUILTIN = Place('<builtin>', 0)


class SchemaError(Exception):
    """Something is wrong with the schema; the text begins with file and line."""

    def __init__(self, place: Place, message: str) -> None:
        super().__init__(f'{place}: {message}')
