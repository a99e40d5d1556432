# SPDX-License-Identifier: MIT
"""qmp-reference.rst: the reference manual, from the documentation comments."""

from __future__ import annotations

import re
from typing import Iterable, List, Optional

from .doc import Doc, Text
from .model import (NOTHING, Alternate, Builtin, Command, Entity, Enum, Event, List_, Member,
                    Object, Schema, Type)
from .output import WARNING

UNDERLINES = {1: '=', 2: '-', 3: '~'}
CHAPTER = re.compile(r'(={1,2}) (.*)$')


def _markup(text: str) -> str:
    """Names stand in single backquotes in comments, where RST wants double ones."""
    return re.sub(r'(?<!`)`([^`]+)`(?!`)', r'``\1``', text)


def _heading(title: str, level: int) -> List[str]:
    return ['', title, UNDERLINES[level] * len(title), '']


def _type_name(type_: Type) -> str:
    if isinstance(type_, List_):
        return f'list of {_type_name(type_.element)}'
    return type_.name if isinstance(type_, Builtin) else f'`{type_.name}`_'


def _indented(lines: Iterable[str]) -> List[str]:
    return [f'    {line}'.rstrip() for line in lines]


def _entry(head: str, text: Optional[Text]) -> List[str]:
    lines = [_markup(line) for line in text.trimmed()] if text else []
    return [head, *_indented(lines), '']


def _members(members: List[Member], doc: Doc) -> List[str]:
    lines: List[str] = []
    for member in members:
        optional = ', optional' if member.optional else ''
        lines += _entry(f'``{member.name}``: {_type_name(member.type)}{optional}',
                        doc.members.get(member.name))
    return lines


def _object(entity: Object, doc: Doc) -> List[str]:
    lines: List[str] = []
    if entity.base:
        lines += [f'It has the members of {_type_name(entity.base)}'
                  f'{", and these:" if entity.own else "."}', '']
    lines += _members(entity.own, doc)
    for branch in entity.branches:
        if branch.type is not NOTHING:
            assert entity.tag is not None
            lines += [f'With ``{entity.tag.name}`` ``{branch.case}`` it also has the members of '
                      f'{_type_name(branch.type)}.', '']
    return lines


def _arguments(arguments: Optional[Object], doc: Doc, what: str) -> List[str]:
    if arguments is None:
        return []
    if arguments.implicit:
        return [f'{what}:', '', *_members(arguments.own, doc)]
    return [f'{what}: the members of {_type_name(arguments)}.', '']


def _parts(entity: Entity, doc: Doc) -> List[str]:
    if isinstance(entity, Enum):
        lines: List[str] = []
        for value in entity.values:
            lines += _entry(f'``{value.name}``', doc.members.get(value.name))
        return lines
    if isinstance(entity, Object):
        return _object(entity, doc)
    if isinstance(entity, Alternate):
        return _members(entity.branches, doc)
    if isinstance(entity, Event):
        return _arguments(entity.arguments, doc, 'Data')
    lines = _arguments(entity.arguments, doc, 'Arguments')
    returns = doc.section('Returns')
    if entity.returns:
        words = f': {_markup(returns.flat())}' if returns else ''
        lines += [f'Returns {_type_name(entity.returns)}{words}.', '']
    return lines


def _kind(entity: Entity) -> str:
    if isinstance(entity, Object):
        return 'union' if entity.tag else 'struct'
    return type(entity).__name__.lower()


def _sections(doc: Doc) -> List[str]:
    lines: List[str] = []
    for name, text in doc.sections:
        if name == 'Example':
            lines += ['Example::', '', *_indented(text.trimmed()), '']
        elif name == 'Note':
            lines += ['.. note::', '', *_indented(map(_markup, text.trimmed())), '']
        elif name == 'Since':
            lines += [f'Since {text.flat()}.', '']
    return lines


def _definition(entity: Entity, level: int) -> List[str]:
    doc = entity.doc
    lines = ['', f'.. _{entity.name}:', *_heading(f'{entity.name} ({_kind(entity)})', level)]
    if doc is None:
        return lines
    lines += [_markup(line) for line in doc.body.trimmed()] + ['']
    lines += _parts(entity, doc)
    for name, text in doc.features.items():
        lines += _entry(f'Feature ``{name}``', text)
    return lines + _sections(doc)


def _chapter(doc: Doc) -> List[str]:
    lines: List[str] = []
    for line in doc.body.lines:
        match = CHAPTER.match(line)
        if match:
            lines += _heading(match.group(2), len(match.group(1)))
        else:
            lines.append(_markup(line))
    return [*lines, '']


def _level(doc: Doc) -> int:
    """Depth of the last heading in a chapter; 0 when it has none."""
    matches = [match for line in doc.body.lines if (match := CHAPTER.match(line))]
    return len(matches[-1].group(1)) if matches else 0


def reference_manual(schema: Schema) -> str:
    lines = ['.. SPDX-License-Identifier: MIT', f'.. {WARNING}', '', '#############',
             'QMP reference', '#############', '']
    level = 0
    for part in schema.manual:
        if isinstance(part, Doc):
            level = _level(part) or level
            lines += _chapter(part)
        else:
            lines += _definition(part, level + 1)
    text = '\n'.join(lines) + '\n'
    return re.sub(r'\n{3,}', '\n\n', text)
