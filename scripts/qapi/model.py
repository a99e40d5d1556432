# SPDX-License-Identifier: MIT
"""The checked schema: types, commands and events that refer to one another."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, Iterator, List, Optional, Union

from .doc import Doc
from .errors import BUILTIN, Place
from .expr import EnumValue


@dataclass
class Builtin:
    """A type of the language itself. `json` is its introspection name, `ctype` its C type."""

    name: str
    json: str
    ctype: str
    pointer: bool = False  # absent is NULL


@dataclass
class Enum:
    name: str
    place: Place
    doc: Optional[Doc]
    features: List[str]
    values: List[EnumValue]
    prefix: str


@dataclass
class List_:
    element: Type

    @property
    def name(self) -> str:
        """The C name; introspection has its own."""
        name = self.element.name
        return f'{name[:1].upper()}{name[1:]}List'


@dataclass
class Member:
    name: str
    type: Type
    optional: bool
    features: List[str]


@dataclass
class Branch:
    """One case of a union: the members that this value of the tag brings."""

    case: str
    type: Object


@dataclass
class Object:
    """A struct, a union (`tag` set), or the unnamed arguments of a command (`implicit`)."""

    name: str
    place: Place
    doc: Optional[Doc]
    features: List[str] = field(default_factory=list)
    base: Optional[Object] = None
    own: List[Member] = field(default_factory=list)
    tag: Optional[Member] = None
    branches: List[Branch] = field(default_factory=list)
    implicit: bool = False

    @property
    def members(self) -> List[Member]:
        """All members that do not depend on the tag, those of the base first."""
        return (self.base.members if self.base else []) + self.own

    def used_branches(self) -> Iterator[Branch]:
        """The branches that bring members."""
        return (branch for branch in self.branches if branch.type.members or branch.type.tag)


@dataclass
class Alternate:
    """One of several types, told apart by their JSON type."""

    name: str
    place: Place
    doc: Optional[Doc]
    features: List[str]
    branches: List[Member] = field(default_factory=list)


Type = Union[Builtin, Enum, List_, Object, Alternate]


@dataclass
class Command:
    name: str
    place: Place
    doc: Optional[Doc]
    features: List[str]
    arguments: Optional[Object]
    boxed: bool
    returns: Optional[Type]
    gen: bool


@dataclass
class Event:
    name: str
    place: Place
    doc: Optional[Doc]
    features: List[str]
    arguments: Optional[Object]
    boxed: bool


Entity = Union[Enum, Object, Alternate, Command, Event]

BUILTINS = [
    Builtin('str', 'string', 'char *', True),
    Builtin('bool', 'boolean', 'bool'),
    Builtin('int', 'int', 'int64_t'),
    *(Builtin(f'{sign}int{bits}', 'int', f'{sign}int{bits}_t')
      for sign in ('', 'u') for bits in (8, 16, 32, 64)),
    Builtin('size', 'int', 'uint64_t'),
    Builtin('number', 'number', 'double'),
    Builtin('null', 'null', 'QapiNull'),
    Builtin('any', 'value', 'json_t *', True),
]

NOTHING = Object('QapiEmpty', BUILTIN, None, implicit=True)


def json_type(type_: Type) -> str:
    """The JSON type of a value of the type, as an alternate tells its branches apart."""
    if isinstance(type_, Builtin):
        return 'number' if type_.json == 'int' else type_.json
    if isinstance(type_, Enum):
        return 'string'
    if isinstance(type_, List_):
        return 'array'
    return 'object' if isinstance(type_, Object) else 'value'


@dataclass
class Schema:
    """Everything a schema defines, in the order of its files."""

    builtins: Dict[str, Builtin] = field(default_factory=dict)
    entities: List[Entity] = field(default_factory=list)
    manual: List[Union[Doc, Entity]] = field(default_factory=list)  # chapters and definitions
    lists: Dict[str, List_] = field(default_factory=dict)
    files: List[str] = field(default_factory=list)  # that it was read from

    def enums(self) -> List[Enum]:
        return [entity for entity in self.entities if isinstance(entity, Enum)]

    def objects(self) -> List[Object]:
        return [entity for entity in self.entities if isinstance(entity, Object)]

    def alternates(self) -> List[Alternate]:
        return [entity for entity in self.entities if isinstance(entity, Alternate)]

    def commands(self) -> List[Command]:
        return [entity for entity in self.entities if isinstance(entity, Command)]

    def events(self) -> List[Event]:
        return [entity for entity in self.entities if isinstance(entity, Event)]
