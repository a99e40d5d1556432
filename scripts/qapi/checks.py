# SPDX-License-Identifier: MIT
"""Rules that hold between the parts of a schema: distinct names, and documents for everything."""

from __future__ import annotations

from typing import Dict, Iterable, Iterator, List, Optional, Set, Tuple

from .doc import Doc, Text
from .errors import Place, SchemaError
from .model import Alternate, Command, Entity, Enum, Event, Object, Schema, json_type
from .names import c_name, enum_constant
from .parser import Pragmas


def _fail(entity: Entity, message: str) -> SchemaError:
    return SchemaError(entity.place, f"'{entity.name}': {message}")


def _check_distinct(entity: Entity, names: Iterable[str], what: str) -> None:
    """Names must differ as JSON and as C."""
    seen: Dict[str, str] = {}
    for name in names:
        known = seen.get(c_name(name))
        if known is not None:
            both = f"'{name}'" if known == name else f"'{known}' and '{name}'"
            raise _fail(entity, f'{what} {both} clash')
        seen[c_name(name)] = name


def _branch_names(entity: Object) -> List[str]:
    """Names of the members of an object as a branch or base brings them, whatever its tag."""
    names = [member.name for member in entity.members]
    for branch in entity.branches:
        names += _branch_names(branch.type)
    return names


def _check_object(entity: Object) -> None:
    common = [member.name for member in entity.members]
    if entity.tag:
        common.append('u')
    _check_distinct(entity, common, 'members')
    for branch in entity.branches:
        _check_distinct(entity, common + _branch_names(branch.type),
                        f"with branch '{branch.case}', members")


def _check_alternate(entity: Alternate) -> None:
    if len(entity.branches) < 2:
        raise _fail(entity, 'needs at least two branches')
    _check_distinct(entity, [branch.name for branch in entity.branches], 'branches')
    seen: Dict[str, str] = {}
    for branch in entity.branches:
        kind = json_type(branch.type)
        if kind == 'value' or branch.optional:
            raise _fail(entity, f"branch '{branch.name}' cannot be told apart by its JSON type")
        if kind in seen:
            raise _fail(entity, f"branches '{seen[kind]}' and '{branch.name}' are both {kind}s")
        seen[kind] = branch.name


def _check_enum(entity: Enum) -> None:
    constants: Dict[str, str] = {}
    for value in entity.values:
        constant = enum_constant(entity.name, value.name, entity.prefix)
        if constant in constants:
            raise _fail(entity, f"values '{constants[constant]}' and '{value.name}' clash")
        constants[constant] = value.name


# --- documentation ---


def documented_parts(entity: Entity) -> Tuple[List[str], List[str]]:
    """Names of the members and features that a definition's comment must speak of."""
    features = list(entity.features)
    if isinstance(entity, Enum):
        names = [value.name for value in entity.values]
        features += [f for value in entity.values for f in value.features]
        return names, features
    if isinstance(entity, Object):
        parts = entity.own
    elif isinstance(entity, Alternate):
        parts = entity.branches
    else:
        arguments = entity.arguments
        parts = arguments.own if arguments and arguments.implicit else []
    return [part.name for part in parts], features + [f for part in parts for f in part.features]


def _check_described(entity: Entity, place: Place, kind: str, names: List[str],
                     texts: Dict[str, Text], complete: bool) -> None:
    for name, text in texts.items():
        if name not in names:
            raise SchemaError(text.place, f"'{entity.name}' has no {kind} '{name}'")
        if not text.flat():
            raise SchemaError(text.place, f"{kind} '{name}' is not described")
    if complete:
        for name in names:
            if name not in texts:
                raise SchemaError(place, f"'{entity.name}': {kind} '{name}' is not documented")


def _check_doc(entity: Entity, required: bool) -> None:
    doc: Optional[Doc] = entity.doc
    if doc is None:
        if required:
            raise _fail(entity, 'is not documented')
        return
    if not doc.body.flat():
        raise SchemaError(doc.place, f"'{entity.name}' is not described")
    members, features = documented_parts(entity)
    _check_described(entity, doc.place, 'member', members, doc.members, required)
    _check_described(entity, doc.place, 'feature', features, doc.features, required)
    if required and not doc.section('Since'):
        raise SchemaError(doc.place, f"'{entity.name}': 'Since:' is missing")
    returns = doc.section('Returns')
    if returns and not (isinstance(entity, Command) and entity.returns):
        raise SchemaError(returns.place, f"'{entity.name}' returns nothing")


# --- names made by the generator ---


def _c_types(schema: Schema) -> Iterator[Tuple[str, Entity]]:
    for entity in schema.entities:
        if not isinstance(entity, (Command, Event)):
            yield entity.name, entity
        if isinstance(entity, Alternate):
            yield f'{entity.name}Type', entity


def check_schema(schema: Schema, pragmas: Pragmas) -> None:
    for entity in schema.entities:
        if isinstance(entity, Object):
            _check_object(entity)
        elif isinstance(entity, Alternate):
            _check_alternate(entity)
        elif isinstance(entity, Enum):
            _check_enum(entity)
        if not (isinstance(entity, Object) and entity.implicit):
            _check_doc(entity, pragmas.doc_required)
    seen: Set[str] = set()
    for name, entity in _c_types(schema):
        if name in seen:
            raise _fail(entity, f"the C type '{name}' is already taken")
        seen.add(name)
