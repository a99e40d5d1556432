# SPDX-License-Identifier: MIT
"""Definitions to the schema: every named thing is made, then filled in, then checked."""

from __future__ import annotations

from typing import Dict, List, Optional, Set

from .checks import check_schema
from .errors import SchemaError
from .expr import Expr, Field, TypeRef, read_expr
from .model import (BUILTINS, NOTHING, Alternate, Branch, Command, Entity, Enum, Event, List_,
                    Member, Object, Schema, Type)
from .names import camel
from .parser import Parsed, parse


def _fail(expr: Expr, message: str) -> SchemaError:
    return SchemaError(expr.place, f"{expr.meta} '{expr.name}': {message}")


class _Builder:
    def __init__(self, parsed: Parsed) -> None:
        self.parsed = parsed
        self.schema = Schema(builtins={builtin.name: builtin for builtin in BUILTINS})
        self.types: Dict[str, Type] = dict(self.schema.builtins)
        self.exprs: Dict[str, Expr] = {}
        self.done: Set[str] = set()
        self.filling: List[str] = []

    def build(self) -> Schema:
        for definition in self.parsed.definitions:
            if definition.expr is None:
                assert definition.doc is not None
                self.schema.manual.append(definition.doc)
            else:
                self._declare(read_expr(definition, self.parsed.pragmas))
        for entity in list(self.schema.entities):
            self._fill(self.exprs[entity.name], entity)
        return self.schema

    # --- first pass: names ---

    def _declare(self, expr: Expr) -> None:
        if expr.name in self.schema.builtins:
            raise _fail(expr, 'this is the name of a builtin type')
        if known := self.exprs.get(expr.name):
            raise _fail(expr, f'already defined at {known.place}')
        if expr.doc and expr.doc.symbol != expr.name:
            raise SchemaError(expr.doc.place, f"this is the comment of '{expr.doc.symbol}', but the "
                                              f"definition is of '{expr.name}'")
        self.exprs[expr.name] = expr
        entity = self._new_entity(expr)
        self.schema.entities.append(entity)
        self.schema.manual.append(entity)
        if not isinstance(entity, (Command, Event)):
            self.types[expr.name] = entity

    @staticmethod
    def _new_entity(expr: Expr) -> Entity:
        name, place, doc, features = expr.name, expr.place, expr.doc, expr.features
        if expr.meta == 'enum':
            return Enum(name, place, doc, features, expr.values, expr.prefix)
        if expr.meta in ('struct', 'union'):
            return Object(name, place, doc, features)
        if expr.meta == 'alternate':
            return Alternate(name, place, doc, features)
        if expr.meta == 'command':
            return Command(name, place, doc, features, None, expr.boxed, None, expr.gen)
        return Event(name, place, doc, features, None, expr.boxed)

    # --- second pass: what they refer to ---

    def _fill(self, expr: Expr, entity: Entity) -> None:
        if isinstance(entity, Object):
            self._fill_object(expr, entity)
        elif isinstance(entity, Alternate):
            entity.branches = self._members(expr, expr.fields)
        elif isinstance(entity, (Command, Event)):
            entity.arguments = self._arguments(expr)
            if isinstance(entity, Command) and expr.returns:
                entity.returns = self._resolve(expr, expr.returns, "'returns'")

    def _resolve(self, expr: Expr, ref: TypeRef, what: str) -> Type:
        type_ = self.types.get(ref.name)
        if type_ is None:
            raise _fail(expr, f"{what}: there is no type '{ref.name}'")
        if not ref.is_list:
            return type_
        return self.schema.lists.setdefault(ref.name, List_(type_))

    def _object(self, expr: Expr, name: str, what: str) -> Object:
        """The object type of that name, filled."""
        type_ = self._resolve(expr, TypeRef(name), what)
        if not isinstance(type_, Object):
            raise _fail(expr, f"{what}: '{name}' is not a struct or union")
        self._fill_object(self.exprs[name], type_)
        return type_

    def _members(self, expr: Expr, fields: List[Field]) -> List[Member]:
        return [Member(item.name, self._resolve(expr, item.type, f"member '{item.name}'"),
                       item.optional, item.features) for item in fields]

    def _fill_object(self, expr: Expr, entity: Object) -> None:
        if entity.name in self.done:
            return
        if entity.name in self.filling:
            raise _fail(expr, 'contains itself by way of its base or branches')
        self.filling.append(entity.name)
        if expr.base_type:
            entity.base = self._object(expr, expr.base_type, "'base'")
        union = expr.meta == 'union'
        entity.own = self._members(expr, expr.base_fields if union else expr.fields)
        if union:
            self._fill_branches(expr, entity)
        self.filling.pop()
        self.done.add(entity.name)

    def _fill_branches(self, expr: Expr, entity: Object) -> None:
        tag = next((m for m in entity.members if m.name == expr.discriminator), None)
        if tag is None or tag.optional or not isinstance(tag.type, Enum):
            raise _fail(expr, f"discriminator '{expr.discriminator}' must be a mandatory member of "
                              "the base, and of an enum type")
        entity.tag = tag
        given = {item.name: item for item in expr.fields}
        for value in tag.type.values:
            item = given.pop(value.name, None)
            if item and item.type.is_list:
                raise _fail(expr, f"branch '{item.name}' must be a struct or union")
            type_ = self._object(expr, item.type.name, f"branch '{item.name}'") if item else NOTHING
            entity.branches.append(Branch(value.name, type_))
        for name in given:
            raise _fail(expr, f"branch '{name}' is not a value of '{tag.type.name}'")

    def _arguments(self, expr: Expr) -> Optional[Object]:
        if expr.data_type:
            arguments = self._object(expr, expr.data_type, "'data'")
            if arguments.tag and not expr.boxed:
                raise _fail(expr, f"'{arguments.name}' is a union, so 'boxed' must be true")
            return arguments
        if not expr.fields:
            return None
        suffix = 'Args' if expr.meta == 'command' else 'Data'
        arguments = Object(camel(expr.name) + suffix, expr.place, None, implicit=True)
        if known := self.exprs.get(arguments.name):
            raise _fail(expr, f"needs the name '{arguments.name}', which is defined at "
                              f"{known.place}")
        arguments.own = self._members(expr, expr.fields)
        self.schema.entities.append(arguments)
        return arguments


def load_schema(path: str) -> Schema:
    """Parse, build and check the schema whose root file is `path`."""
    parsed = parse(path)
    schema = _Builder(parsed).build()
    schema.files = parsed.files
    check_schema(schema, parsed.pragmas)
    return schema
