# SPDX-License-Identifier: MIT
"""qapi-introspect.c: what query-qmp-schema answers, as JSON text.

Commands and events come first, under their names. Then the types that they use, directly or not, in
the order in which they come up; their names are numbers, so that clients cannot depend on them.
"""

from __future__ import annotations

import json
from typing import Any, Dict, List, Set

from .model import NOTHING, Alternate, Builtin, Command, Enum, Event, List_, Object, Schema, Type
from .output import CFile

Element = Dict[str, Any]


def _with_features(element: Element, features: List[str]) -> Element:
    return {**element, 'features': features} if features else element


class _Writer:
    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.used: List[Type] = []  # in the order of their first use; grows while it is walked
        self.numbers: Dict[str, str] = {}
        self.seen: Set[str] = set()

    def _name(self, type_: Type) -> str:
        """What elements call the type; from now on it is in use."""
        if isinstance(type_, Builtin) and type_.json == 'int':
            type_ = self.schema.builtins['int']  # widths are ours alone
        if type_.name not in self.seen:
            self.seen.add(type_.name)
            self.used.append(type_)
        if isinstance(type_, Builtin):
            return type_.name
        if isinstance(type_, List_):
            return f'[{self._name(type_.element)}]'
        return self.numbers.setdefault(type_.name, str(len(self.numbers)))

    def _object(self, type_: Object) -> Element:
        members: List[Element] = []
        for member in type_.members:
            element: Element = {'name': member.name, 'type': self._name(member.type)}
            if member.optional:
                element['default'] = None
            members.append(_with_features(element, member.features))
        result: Element = {'members': members, 'meta-type': 'object'}
        if type_.tag:
            result['tag'] = type_.tag.name
            result['variants'] = [{'case': branch.case, 'type': self._name(branch.type)}
                                  for branch in type_.branches]
        return _with_features(result, type_.features)

    def _type(self, type_: Type) -> Element:
        if isinstance(type_, Builtin):
            return {'meta-type': 'builtin', 'json-type': type_.json}
        if isinstance(type_, List_):
            return {'meta-type': 'array', 'element-type': self._name(type_.element)}
        if isinstance(type_, Enum):
            members = [_with_features({'name': value.name}, value.features)
                       for value in type_.values]
            return _with_features({'meta-type': 'enum', 'members': members,
                                   'values': [value.name for value in type_.values]},
                                  type_.features)
        if isinstance(type_, Alternate):
            types = [{'type': self._name(branch.type)} for branch in type_.branches]
            return _with_features({'meta-type': 'alternate', 'members': types}, type_.features)
        return self._object(type_)

    def elements(self) -> List[Element]:
        result: List[Element] = []
        for entity in self.schema.entities:
            if not isinstance(entity, (Command, Event)):
                continue
            element: Element = {'name': entity.name,
                                'arg-type': self._name(entity.arguments or NOTHING)}
            if isinstance(entity, Command):
                element['meta-type'] = 'command'
                element['ret-type'] = self._name(entity.returns or NOTHING)
            else:
                element['meta-type'] = 'event'
            result.append(_with_features(element, entity.features))
        for type_ in self.used:
            result.append({'name': self._name(type_), **self._type(type_)})
        return result


def introspection(schema: Schema) -> List[Element]:
    return _Writer(schema).elements()


def generate_introspect(schema: Schema) -> List[CFile]:
    out = CFile('qapi-introspect.c')
    out.add('#include "qapi/introspect.h"')
    out.gap()
    lines = [json.dumps(element) for element in introspection(schema)]
    text = ',\n'.join(lines)
    quoted = '\n'.join('    ' + json.dumps(line) for line in text.splitlines())
    out.add(f'const char qapi_introspect_text[] =\n    "["\n{quoted}\n    "]";')
    return [out]
