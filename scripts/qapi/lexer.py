# SPDX-License-Identifier: MIT
"""Characters to tokens.

The schema language is JSON with single-quoted strings, `#` comments and documentation
comments: `##` on a line of its own, lines that start with `#`, and `##` again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Iterator, List, Union

from .errors import Place, SchemaError

PUNCTUATION = '{}[]:,'
STRING = re.compile(r"'([^'\\\n]*)'")
WORD = re.compile(r'[a-z]+')
WORDS = {'true': True, 'false': False}


@dataclass(frozen=True)
class Punctuation:
    place: Place
    char: str

    def __str__(self) -> str:
        return f"'{self.char}'"


@dataclass(frozen=True)
class Literal:
    place: Place
    value: Union[str, bool]

    def __str__(self) -> str:
        return f"'{self.value}'" if isinstance(self.value, str) else str(self.value).lower()


@dataclass(frozen=True)
class DocComment:
    """The lines between `##` and `##`, without their leading `# `."""

    place: Place
    lines: List[str]

    def __str__(self) -> str:
        return 'documentation comment'


@dataclass(frozen=True)
class End:
    place: Place

    def __str__(self) -> str:
        return 'end of file'


Token = Union[Punctuation, Literal, DocComment, End]


def _doc_comment(path: str, lines: List[str], first: int) -> DocComment:
    """The documentation comment whose opening `##` is line number `first`."""
    text: List[str] = []
    for number, line in enumerate(lines[first:], first + 1):
        line = line.rstrip()
        if line == '##':
            return DocComment(Place(path, first), text)
        if line != '#' and not line.startswith('# '):
            raise SchemaError(Place(path, number), "a documentation line must start with '# '")
        text.append(line[2:])
    raise SchemaError(Place(path, first), "documentation comment is not closed by '##'")


def _line_tokens(path: str, number: int, line: str) -> Iterator[Token]:
    place = Place(path, number)
    at = 0
    while at < len(line):
        char = line[at]
        if char == '#':
            return
        if char.isspace():
            at += 1
        elif char in PUNCTUATION:
            yield Punctuation(place, char)
            at += 1
        elif match := STRING.match(line, at):
            yield Literal(place, match.group(1))
            at = match.end()
        elif char == "'":
            raise SchemaError(place, 'string is not closed or has a backslash in it')
        elif (match := WORD.match(line, at)) and match.group() in WORDS:
            yield Literal(place, WORDS[match.group()])
            at = match.end()
        else:
            raise SchemaError(place, f"stray '{char}'")


def tokens(path: str, text: str) -> Iterator[Token]:
    """All tokens of a file; the last one is End."""
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        number += 1
        line = lines[number - 1]
        if line.rstrip() == '##':
            comment = _doc_comment(path, lines, number)
            yield comment
            number += len(comment.lines) + 1
        else:
            yield from _line_tokens(path, number, line)
    yield End(Place(path, max(len(lines), 1)))
