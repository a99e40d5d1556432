# SPDX-License-Identifier: MIT
"""The shape of one definition: which keys it has and what JSON stands behind them.

Nothing here knows other definitions; whether types exist is model.py's question.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Dict, FrozenSet, List, Optional, Set

from .doc import Doc
from .errors import Place, SchemaError
from .parser import Definition, Pragmas, Value

TYPE_NAME = re.compile(r'[A-Z][A-Za-z0-9]*[a-z][A-Za-z0-9]*$')
MEMBER_NAME = re.compile(r'[a-z][a-z0-9]*(-[a-z0-9]+)*$')
LOOSE_MEMBER_NAME = re.compile(r'[A-Za-z][A-Za-z0-9_-]*$')
ENUM_VALUE = re.compile(r'[a-z0-9][a-z0-9]*([-_][a-z0-9]+)*$')
EVENT_NAME = re.compile(r'[A-Z][A-Z0-9]*(_[A-Z0-9]+)*$')

KEYS: Dict[str, FrozenSet[str]] = {
    'enum': frozenset({'data', 'prefix', 'features'}),
    'struct': frozenset({'data', 'base', 'features'}),
    'union': frozenset({'data', 'base', 'discriminator', 'features'}),
    'alternate': frozenset({'data', 'features'}),
    'command': frozenset({'data', 'returns', 'boxed', 'gen', 'features'}),
    'event': frozenset({'data', 'boxed', 'features'}),
}
REQUIRED: Dict[str, FrozenSet[str]] = {
    'enum': frozenset({'data'}),
    'struct': frozenset({'data'}),
    'union': frozenset({'data', 'base', 'discriminator'}),
    'alternate': frozenset({'data'}),
    'command': frozenset(),
    'event': frozenset(),
}


@dataclass(frozen=True)
class TypeRef:
    """The name of a type, or of the elements of a list of it."""

    name: str
    is_list: bool = False


@dataclass(frozen=True)
class Field:
    """A member of an object or branch of a union as written: not yet resolved."""

    name: str
    type: TypeRef
    optional: bool
    features: List[str]


@dataclass(frozen=True)
class EnumValue:
    name: str
    features: List[str]


@dataclass
class Expr:
    """One definition whose shape is right. Which fields are filled depends on `meta`."""

    place: Place
    meta: str
    name: str
    doc: Optional[Doc]
    features: List[str] = field(default_factory=list)
    values: List[EnumValue] = field(default_factory=list)  # enum
    prefix: str = ''  # enum
    fields: List[Field] = field(default_factory=list)  # members, or branches
    data_type: str = ''  # command, event: 'data' names a type
    base_type: str = ''  # struct, union: 'base' names a type
    base_fields: List[Field] = field(default_factory=list)  # union: members given in place
    discriminator: str = ''  # union
    returns: Optional[TypeRef] = None  # command
    boxed: bool = False
    gen: bool = True  # command: arguments are decoded for the handler


class _Reader:
    def __init__(self, definition: Definition, pragmas: Pragmas) -> None:
        assert definition.expr is not None
        self.place = definition.place
        self.source = definition.expr
        self.pragmas = pragmas
        self.expr = Expr(self.place, self._meta(), '', definition.doc)
        name = self.source[self.expr.meta]
        if not isinstance(name, str):
            raise SchemaError(self.place, f"value of '{self.expr.meta}' must be a string")
        self.expr.name = name

    def fail(self, message: str) -> SchemaError:
        return SchemaError(self.place, f"{self.expr.meta} '{self.expr.name}': {message}")

    def _meta(self) -> str:
        metas = [key for key in self.source if key in KEYS]
        if len(metas) != 1:
            known = ', '.join(f"'{key}'" for key in KEYS)
            raise SchemaError(self.place, f'a definition has exactly one of the keys {known}, '
                                          "'include', 'pragma'")
        return metas[0]

    def _check_keys(self) -> None:
        meta = self.expr.meta
        for key in self.source:
            if key != meta and key not in KEYS[meta]:
                raise self.fail(f"unknown key '{key}'")
        for key in sorted(REQUIRED[meta]):
            if key not in self.source:
                raise self.fail(f"key '{key}' is missing")

    def _check_name(self) -> None:
        name, meta = self.expr.name, self.expr.meta
        if meta == 'event':
            good = EVENT_NAME.match(name)
        elif meta == 'command':
            good = (LOOSE_MEMBER_NAME if name in self.pragmas.command_name_exceptions
                    else MEMBER_NAME).match(name)
        else:
            good = TYPE_NAME.match(name)
            if good and name.endswith('List'):
                raise self.fail("names that end in 'List' belong to lists")
        if not good:
            raise self.fail(f'bad name for a definition of this kind')

    def _features(self, value: Value) -> List[str]:
        if not isinstance(value, list):
            raise self.fail("'features' must be a list")
        names: List[str] = []
        for item in value:
            name = item.get('name') if isinstance(item, dict) and len(item) == 1 else item
            if not isinstance(name, str):
                raise self.fail('a feature must be a string')
            if not MEMBER_NAME.match(name):
                raise self.fail(f"bad feature name '{name}'")
            if name in names:
                raise self.fail(f"feature '{name}' is given twice")
            names.append(name)
        return names

    def _type_ref(self, value: Value, what: str) -> TypeRef:
        if isinstance(value, str):
            return TypeRef(value)
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
            return TypeRef(value[0], True)
        raise self.fail(f"{what} must name a type, or be a list of one type's name")

    def _fields(self, value: Value, what: str, branches: bool = False) -> List[Field]:
        if not isinstance(value, dict):
            raise self.fail(f'{what} must be an object')
        return [self._field(name, item, branches) for name, item in value.items()]

    def _field(self, name: str, value: Value, branch: bool) -> Field:
        optional = name.startswith('*') and not branch
        plain = name[1:] if optional else name
        loose = self.expr.name in self.pragmas.member_name_exceptions or branch
        if not (LOOSE_MEMBER_NAME if loose else MEMBER_NAME).match(plain):
            raise self.fail(f"bad member name '{name}'")
        if plain.startswith('has-') or plain.startswith('has_'):
            raise self.fail(f"member name '{plain}' is reserved")
        features: List[str] = []
        if isinstance(value, dict):
            unknown = set(value) - {'type', 'features'}
            if unknown or 'type' not in value:
                raise self.fail(f"member '{plain}' must have 'type' and may have 'features'")
            features = self._features(value.get('features', []))
            value = value['type']
        return Field(plain, self._type_ref(value, f"member '{plain}'"), optional, features)

    def _enum_values(self, value: Value) -> List[EnumValue]:
        if not isinstance(value, list) or not value:
            raise self.fail("'data' must be a list of values")
        loose = self.expr.name in self.pragmas.member_name_exceptions
        pattern = LOOSE_MEMBER_NAME if loose else ENUM_VALUE
        result: List[EnumValue] = []
        seen: Set[str] = set()
        for item in value:
            features: List[str] = []
            if isinstance(item, dict):
                features = self._features(item.get('features', []))
                item = item.get('name', False)
            if not isinstance(item, str) or not pattern.match(item):
                raise self.fail(f"bad enum value '{item}'")
            if item in seen:
                raise self.fail(f"value '{item}' is given twice")
            seen.add(item)
            result.append(EnumValue(item, features))
        return result

    def _string(self, key: str) -> str:
        value = self.source.get(key, '')
        if not isinstance(value, str):
            raise self.fail(f"value of '{key}' must be a string")
        return value

    def _flag(self, key: str, default: bool) -> bool:
        """A flag may only be given when it differs from what holds without it."""
        if key not in self.source:
            return default
        if self.source[key] is not (not default):
            raise self.fail(f"'{key}' may only be {str(not default).lower()}")
        return not default

    def _read_base(self) -> None:
        base = self.source.get('base')
        if isinstance(base, dict) and self.expr.meta == 'union':
            self.expr.base_fields = self._fields(base, "'base'")
        else:
            self.expr.base_type = self._string('base')

    def _read_data(self) -> None:
        expr, data = self.expr, self.source.get('data')
        if expr.meta == 'enum':
            expr.values = self._enum_values(data if data is not None else [])
        elif isinstance(data, str) and expr.meta in ('command', 'event'):
            expr.data_type = data
        elif data is not None:
            expr.fields = self._fields(data, "'data'", expr.meta in ('union', 'alternate'))

    def read(self) -> Expr:
        self._check_keys()
        self._check_name()
        expr = self.expr
        expr.features = self._features(self.source.get('features', []))
        expr.prefix = self._string('prefix')
        expr.discriminator = self._string('discriminator')
        expr.boxed = self._flag('boxed', False)
        expr.gen = self._flag('gen', True)
        if 'returns' in self.source:
            expr.returns = self._type_ref(self.source['returns'], "'returns'")
        self._read_base()
        self._read_data()
        if expr.boxed and not expr.data_type:
            raise self.fail("'boxed' needs 'data' that names a type")
        return expr


def read_expr(definition: Definition, pragmas: Pragmas) -> Expr:
    """Check the shape of a definition that has an expression."""
    return _Reader(definition, pragmas).read()
