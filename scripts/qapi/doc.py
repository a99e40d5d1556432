# SPDX-License-Identifier: MIT
"""One documentation comment.

A comment whose first line is `@Name:` documents the definition that follows it:

    ##
    # @Name:
    #
    # What it is.
    #
    # @member: what it says (default: what it is when absent)
    #     and a second line, indented
    #
    # Features:
    #
    # @feature: what it means
    #
    # Returns: what comes back
    #
    # Since: 1.0
    #
    # Example:
    #
    #     -> { "execute": "name" }
    #     <- { "return": {} }
    ##

Any other comment is a chapter of the reference manual; `= Title` in its first line opens one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Dict, List, Optional, Tuple

from .errors import Place, SchemaError
from .lexer import DocComment

SYMBOL = re.compile(r'@([A-Za-z0-9_.-]+):$')
MEMBER = re.compile(r'@([A-Za-z0-9_.-]+): *(.*)$')
SECTION = re.compile(r'(Returns|Since|Note|Example|Features):(?: +(.*))?$')


@dataclass
class Text:
    """Some lines of prose, and where they begin."""

    place: Place
    lines: List[str] = field(default_factory=list)

    def trimmed(self) -> List[str]:
        lines = list(self.lines)
        while lines and not lines[0].strip():
            del lines[0]
        while lines and not lines[-1].strip():
            del lines[-1]
        return lines

    def flat(self) -> str:
        return ' '.join(' '.join(self.lines).split())


@dataclass
class Doc:
    place: Place
    symbol: Optional[str] = None  # None: a chapter
    body: Text = field(default_factory=lambda: Text(Place('', 0)))
    members: Dict[str, Text] = field(default_factory=dict)
    features: Dict[str, Text] = field(default_factory=dict)
    sections: List[Tuple[str, Text]] = field(default_factory=list)

    def section(self, name: str) -> Optional[Text]:
        return next((text for tag, text in self.sections if tag == name), None)


def _dedent(line: str) -> str:
    """Continuation lines are indented by up to four blanks; what is deeper stays."""
    blanks = len(line) - len(line.lstrip(' '))
    return line[min(blanks, 4):]


class _Reader:
    """Sorts the lines of one definition's comment into its texts."""

    def __init__(self, doc: Doc) -> None:
        self.doc = doc
        self.text = doc.body
        self.in_features = False

    def _start_member(self, name: str, rest: str, place: Place) -> None:
        where = self.doc.features if self.in_features else self.doc.members
        if name in where:
            raise SchemaError(place, f"'@{name}' is documented twice")
        if not self.in_features and self.doc.sections:
            raise SchemaError(place, f"'@{name}:' must come before '{self.doc.sections[0][0]}:'")
        self.text = where[name] = Text(place, [rest])

    def _start_section(self, name: str, rest: str, place: Place) -> None:
        self.in_features = name == 'Features'
        if name in ('Since', 'Returns') and self.doc.section(name):
            raise SchemaError(place, f"'{name}:' is given twice")
        if self.in_features:
            self.text = Text(place)  # nothing may stand between the heading and the first @
            return
        self.text = Text(place, [rest])
        self.doc.sections.append((name, self.text))

    def line(self, line: str, place: Place) -> None:
        if match := MEMBER.match(line):
            self._start_member(match.group(1), match.group(2), place)
        elif match := SECTION.match(line):
            self._start_section(match.group(1), match.group(2) or '', place)
        else:
            self.text.lines.append(line if self.text is self.doc.body else _dedent(line))


def read_doc(comment: DocComment) -> Doc:
    place = Place(comment.place.path, comment.place.line + 1)
    match = SYMBOL.match(comment.lines[0]) if comment.lines else None
    if not match:
        return Doc(place, body=Text(place, list(comment.lines)))
    doc = Doc(place, match.group(1), Text(place))
    reader = _Reader(doc)
    for number, line in enumerate(comment.lines[1:], place.line + 1):
        reader.line(line, Place(place.path, number))
    return doc
