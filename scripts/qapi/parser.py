# SPDX-License-Identifier: MIT
"""Tokens to definitions, following includes and pragmas."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Dict, List, Optional, Set, Union

from .doc import Doc, read_doc
from .errors import Place, SchemaError
from .lexer import DocComment, End, Literal, Punctuation, Token, tokens

# What a JSON text of the schema language turns into. (mypy follows the recursion.)
Value = Union[str, bool, List['Value'], Dict[str, 'Value']]


@dataclass(frozen=True)
class Definition:
    """One top-level expression and the comment before it; or a chapter, without expression."""

    place: Place
    expr: Optional[Dict[str, Value]]
    doc: Optional[Doc]


@dataclass
class Pragmas:
    """Rules for the whole schema, set by `{ 'pragma': { ... } }`."""

    doc_required: bool = False
    command_name_exceptions: Set[str] = field(default_factory=set)
    member_name_exceptions: Set[str] = field(default_factory=set)


@dataclass
class Parsed:
    definitions: List[Definition] = field(default_factory=list)
    pragmas: Pragmas = field(default_factory=Pragmas)
    files: List[str] = field(default_factory=list)  # in the order of their reading


class _FileParser:
    def __init__(self, path: str, text: str) -> None:
        self._tokens = tokens(path, text)
        self.token: Token = next(self._tokens)

    def _advance(self) -> Token:
        token = self.token
        if not isinstance(token, End):
            self.token = next(self._tokens)
        return token

    def _at(self, char: str) -> bool:
        return isinstance(self.token, Punctuation) and self.token.char == char

    def _expect(self, char: str) -> None:
        if not self._at(char):
            raise SchemaError(self.token.place, f"expected '{char}' before {self.token}")
        self._advance()

    def take_doc(self) -> Optional[DocComment]:
        if not isinstance(self.token, DocComment):
            return None
        comment = self.token
        self._advance()
        return comment

    def object(self) -> Dict[str, Value]:
        members: Dict[str, Value] = {}
        self._expect('{')
        while not self._at('}'):
            token = self._advance()
            if not isinstance(token, Literal) or not isinstance(token.value, str):
                raise SchemaError(token.place, f'expected a string before {token}')
            if token.value in members:
                raise SchemaError(token.place, f'key {token} is given twice')
            self._expect(':')
            members[token.value] = self.value()
            if not self._at('}'):
                self._expect(',')
        self._expect('}')
        return members

    def array(self) -> List[Value]:
        items: List[Value] = []
        self._expect('[')
        while not self._at(']'):
            items.append(self.value())
            if not self._at(']'):
                self._expect(',')
        self._expect(']')
        return items

    def value(self) -> Value:
        if self._at('{'):
            return self.object()
        if self._at('['):
            return self.array()
        token = self._advance()
        if isinstance(token, Literal):
            return token.value
        raise SchemaError(token.place, f"expected '{{', '[', a string or a boolean before {token}")


def _strings(place: Place, what: str, value: Value) -> Set[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise SchemaError(place, f"pragma '{what}' must be a list of strings")
    return {str(item) for item in value}


def _apply_pragma(place: Place, value: Value, pragmas: Pragmas) -> None:
    if not isinstance(value, dict):
        raise SchemaError(place, "value of 'pragma' must be an object")
    for name, setting in value.items():
        if name == 'doc-required':
            if not isinstance(setting, bool):
                raise SchemaError(place, "pragma 'doc-required' must be a boolean")
            pragmas.doc_required = setting
        elif name == 'command-name-exceptions':
            pragmas.command_name_exceptions |= _strings(place, name, setting)
        elif name == 'member-name-exceptions':
            pragmas.member_name_exceptions |= _strings(place, name, setting)
        else:
            raise SchemaError(place, f"unknown pragma '{name}'")


class _TreeParser:
    """Reads a file and what it includes; each file once."""

    def __init__(self) -> None:
        self.result = Parsed()
        self._read: Set[str] = set()

    def _include(self, place: Place, value: Value) -> None:
        if not isinstance(value, str):
            raise SchemaError(place, "value of 'include' must be a string")
        self.file(os.path.join(os.path.dirname(place.path), value), place)

    def file(self, path: str, included_at: Optional[Place] = None) -> None:
        name = os.path.normpath(path)
        if name in self._read:
            return
        self._read.add(name)
        self.result.files.append(name)
        try:
            with open(name, encoding='utf-8') as source:
                text = source.read()
        except OSError as error:
            raise SchemaError(included_at or Place(name, 1),
                              f"cannot read '{name}': {error.strerror}") from error
        self._definitions(_FileParser(name, text))

    def _definitions(self, parser: _FileParser) -> None:
        while not isinstance(parser.token, End):
            comment = parser.take_doc()
            doc = read_doc(comment) if comment else None
            place = parser.token.place
            if doc and doc.symbol is None:
                self.result.definitions.append(Definition(doc.place, None, doc))
                continue
            if doc and isinstance(parser.token, (DocComment, End)):
                raise SchemaError(doc.place, f"nothing is defined after the comment of "
                                             f"'{doc.symbol}'")
            expr = parser.object()
            if set(expr) == {'include'} and not doc:
                self._include(place, expr['include'])
            elif set(expr) == {'pragma'} and not doc:
                _apply_pragma(place, expr['pragma'], self.result.pragmas)
            else:
                self.result.definitions.append(Definition(place, expr, doc))


def parse(path: str) -> Parsed:
    """All definitions of the schema whose root file is `path`."""
    tree = _TreeParser()
    tree.file(path)
    return tree.result
