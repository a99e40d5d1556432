#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The generator: what it refuses, with which words and at which line, and what it makes of the rest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Callable, List, Set, Tuple

from qapi.build import load_schema
from qapi.c_introspect import introspection
from qapi.c_types import generate_types
from qapi.errors import SchemaError
from qapi.model import Object, Schema
from qapi.names import c_name, camel, enum_constant, snake
from qapi.rst_reference import reference_manual

SCHEMA = Path(__file__).resolve().parents[2] / 'qapi' / 'schema' / 'merino.json'
ALL_KINDS = Path(__file__).parent / 'all-kinds.json'

DOCS = "{ 'pragma': { 'doc-required': true } }\n"


def doc(*lines: str) -> str:
    return '\n'.join(['##', *(f'# {line}'.rstrip() for line in lines), '##', ''])


# Name of the case, schema, and the error without the path of the file.
REFUSED: List[Tuple[str, str, str]] = [
    # characters
    ('stray character', "{ 'enum': %", "1: stray '%'"),
    ('double quotes', '{ "enum": 1 }', "1: stray '\"'"),
    ('unknown word', "{ 'enum': null }", "1: stray 'n'"),
    ('open string', "\n{ 'enum", '2: string is not closed or has a backslash in it'),
    ('open comment', '##\n# @A:', "1: documentation comment is not closed by '##'"),
    ('bad comment line', '##\nA\n##', "2: a documentation line must start with '# '"),
    # grammar
    ('no object', "'enum'", "1: expected '{' before 'enum'"),
    ('open object', "{ 'enum': 'E'", "1: expected ',' before end of file"),
    ('no colon', "{ 'enum' 'E' }", "1: expected ':' before 'E'"),
    ('no key', "{ [] }", "1: expected a string before '['"),
    ('no value', "{ 'enum': }", "1: expected '{', '[', a string or a boolean before '}'"),
    ('double key', "{ 'enum': 'E',\n  'enum': 'F' }", "2: key 'enum' is given twice"),
    # files and pragmas
    ('include of nothing', "\n{ 'include': 'absent.json' }", '2: cannot read'),
    ('include of a list', "{ 'include': [] }", "1: value of 'include' must be a string"),
    ('pragma', "{ 'pragma': 'x' }", "1: value of 'pragma' must be an object"),
    ('unknown pragma', "{ 'pragma': { 'x': true } }", "1: unknown pragma 'x'"),
    ('pragma of no list', "{ 'pragma': { 'command-name-exceptions': 'x' } }",
     "1: pragma 'command-name-exceptions' must be a list of strings"),
    # the shape of a definition
    ('nothing defined', "{ 'data': {} }", "1: a definition has exactly one of the keys 'enum'"),
    ('two things defined', "{ 'enum': 'A', 'struct': 'A' }", '1: a definition has exactly one'),
    ('name of no string', "{ 'enum': true }", "1: value of 'enum' must be a string"),
    ('unknown key', "{ 'struct': 'A', 'data': {}, 'x': 'y' }", "1: struct 'A': unknown key 'x'"),
    ('missing key', "{ 'enum': 'A' }", "1: enum 'A': key 'data' is missing"),
    ('name of a type', "{ 'struct': 'a', 'data': {} }",
     "1: struct 'a': bad name for a definition of this kind"),
    ('name of a command', "{ 'command': 'a_b' }",
     "1: command 'a_b': bad name for a definition of this kind"),
    ('name of an event', "{ 'event': 'moved' }",
     "1: event 'moved': bad name for a definition of this kind"),
    ('name of a list', "{ 'struct': 'AaList', 'data': {} }",
     "1: struct 'AaList': names that end in 'List' belong to lists"),
    ('name of a member', "{ 'struct': 'Aa', 'data': { 'b_c': 'str' } }",
     "1: struct 'Aa': bad member name 'b_c'"),
    ('reserved member', "{ 'struct': 'Aa', 'data': { 'has-b': 'str' } }",
     "1: struct 'Aa': member name 'has-b' is reserved"),
    ('type of a member', "{ 'struct': 'Aa', 'data': { 'b': true } }",
     "1: struct 'Aa': member 'b' must name a type, or be a list of one type's name"),
    ('list of two types', "{ 'struct': 'Aa', 'data': { 'b': [ 'str', 'int' ] } }",
     "1: struct 'Aa': member 'b' must name a type, or be a list of one type's name"),
    ('member without type', "{ 'struct': 'Aa', 'data': { 'b': { 'features': [] } } }",
     "1: struct 'Aa': member 'b' must have 'type' and may have 'features'"),
    ('members in a list', "{ 'struct': 'Aa', 'data': [] }",
     "1: struct 'Aa': 'data' must be an object"),
    ('enum without values', "{ 'enum': 'Aa', 'data': [] }",
     "1: enum 'Aa': 'data' must be a list of values"),
    ('enum value', "{ 'enum': 'Aa', 'data': [ 'B' ] }", "1: enum 'Aa': bad enum value 'B'"),
    ('double enum value', "{ 'enum': 'Aa', 'data': [ 'b', 'b' ] }",
     "1: enum 'Aa': value 'b' is given twice"),
    ('features', "{ 'enum': 'Aa', 'data': [ 'b' ], 'features': 'c' }",
     "1: enum 'Aa': 'features' must be a list"),
    ('name of a feature', "{ 'enum': 'Aa', 'data': [ 'b' ], 'features': [ 'C' ] }",
     "1: enum 'Aa': bad feature name 'C'"),
    ('double feature', "{ 'enum': 'Aa', 'data': [ 'b' ], 'features': [ 'c', 'c' ] }",
     "1: enum 'Aa': feature 'c' is given twice"),
    ('boxed members', "{ 'command': 'a', 'data': { 'b': 'str' }, 'boxed': true }",
     "1: command 'a': 'boxed' needs 'data' that names a type"),
    ('idle flag', "{ 'command': 'a', 'boxed': false }", "1: command 'a': 'boxed' may only be true"),
    # definitions together
    ('defined twice', "{ 'enum': 'Aa', 'data': [ 'b' ] }\n{ 'struct': 'Aa', 'data': {} }",
     "2: struct 'Aa': already defined at"),
    ('builtin type', "{ 'command': 'str' }", "1: command 'str': this is the name of a builtin type"),
    ('unknown type', "{ 'struct': 'Aa',\n  'data': { 'b': 'Cc' } }",
     "1: struct 'Aa': member 'b': there is no type 'Cc'"),
    ('unknown base', "{ 'struct': 'Aa', 'base': 'Bb', 'data': {} }",
     "1: struct 'Aa': 'base': there is no type 'Bb'"),
    ('base of no struct', "{ 'struct': 'Aa', 'base': 'str', 'data': {} }",
     "1: struct 'Aa': 'base': 'str' is not a struct or union"),
    ('base of itself', "{ 'struct': 'Aa', 'base': 'Aa', 'data': {} }",
     "1: struct 'Aa': contains itself by way of its base or branches"),
    ('base in a circle',
     "{ 'struct': 'Aa', 'base': 'Bb', 'data': {} }\n{ 'struct': 'Bb', 'base': 'Aa', 'data': {} }",
     "1: struct 'Aa': contains itself by way of its base or branches"),
    ('branch of itself',
     "{ 'enum': 'Ee', 'data': [ 'x' ] }\n{ 'union': 'Aa', 'base': { 'e': 'Ee' },"
     " 'discriminator': 'e', 'data': { 'x': 'Aa' } }",
     "2: union 'Aa': contains itself by way of its base or branches"),
    ('member of the base again',
     "{ 'struct': 'Aa', 'data': { 'x': 'str' } }\n"
     "{ 'struct': 'Bb', 'base': 'Aa', 'data': { 'x': 'str' } }",
     "2: 'Bb': members 'x' clash"),
    ('members alike in C', "{ 'pragma': { 'member-name-exceptions': [ 'Aa' ] } }\n"
     "{ 'struct': 'Aa', 'data': { 'b-c': 'str', 'b_c': 'str' } }",
     "2: 'Aa': members 'b-c' and 'b_c' clash"),
    ('member of a branch again',
     "{ 'enum': 'Ee', 'data': [ 'x' ] }\n{ 'struct': 'Bb', 'data': { 'e': 'str' } }\n"
     "{ 'union': 'Aa', 'base': { 'e': 'Ee' }, 'discriminator': 'e', 'data': { 'x': 'Bb' } }",
     "3: 'Aa': with branch 'x', members 'e' clash"),
    ('no discriminator', "{ 'union': 'Aa', 'base': { 'b': 'str' }, 'discriminator': 'c',"
     " 'data': {} }", "1: union 'Aa': discriminator 'c' must be a mandatory member of the base"),
    ('discriminator of no enum', "{ 'union': 'Aa', 'base': { 'b': 'str' }, 'discriminator': 'b',"
     " 'data': {} }", "1: union 'Aa': discriminator 'b' must be a mandatory member of the base"),
    ('branch of no value', "{ 'enum': 'Ee', 'data': [ 'x' ] }\n{ 'struct': 'Bb', 'data': {} }\n"
     "{ 'union': 'Aa', 'base': { 'e': 'Ee' }, 'discriminator': 'e', 'data': { 'y': 'Bb' } }",
     "3: union 'Aa': branch 'y' is not a value of 'Ee'"),
    ('branch of no struct', "{ 'enum': 'Ee', 'data': [ 'x' ] }\n"
     "{ 'union': 'Aa', 'base': { 'e': 'Ee' }, 'discriminator': 'e', 'data': { 'x': 'int' } }",
     "2: union 'Aa': branch 'x': 'int' is not a struct or union"),
    ('union without box', "{ 'enum': 'Ee', 'data': [ 'x' ] }\n"
     "{ 'union': 'Aa', 'base': { 'e': 'Ee' }, 'discriminator': 'e', 'data': {} }\n"
     "{ 'command': 'c', 'data': 'Aa' }",
     "3: command 'c': 'Aa' is a union, so 'boxed' must be true"),
    ('alternate of one', "{ 'alternate': 'Aa', 'data': { 'b': 'str' } }",
     "1: 'Aa': needs at least two branches"),
    ('alternate of two strings', "{ 'enum': 'Ee', 'data': [ 'x' ] }\n"
     "{ 'alternate': 'Aa', 'data': { 'b': 'str', 'c': 'Ee' } }",
     "2: 'Aa': branches 'b' and 'c' are both strings"),
    ('alternate of anything', "{ 'alternate': 'Aa', 'data': { 'b': 'any', 'c': 'str' } }",
     "1: 'Aa': branch 'b' cannot be told apart by its JSON type"),
    ('enum constants alike', "{ 'enum': 'Aa', 'data': [ 'b-c', 'b_c' ] }",
     "1: 'Aa': values 'b-c' and 'b_c' clash"),
    ('name of arguments taken', "{ 'struct': 'GoThereArgs', 'data': {} }\n"
     "{ 'command': 'go-there', 'data': { 'x': 'str' } }",
     "2: command 'go-there': needs the name 'GoThereArgs', which is defined at"),
    # documents
    ('not documented', DOCS + "{ 'command': 'a' }", "2: 'a': is not documented"),
    ('comment of another', doc('@b:', '', 'Text.') + "{ 'command': 'a' }",
     "2: this is the comment of 'b', but the definition is of 'a'"),
    ('comment of nothing', doc('@b:', '', 'Text.'),
     "2: nothing is defined after the comment of 'b'"),
    ('empty comment', doc('@a:') + "{ 'command': 'a' }", "2: 'a' is not described"),
    ('member not documented', DOCS + doc('@a:', '', 'Text.', '', 'Since: 1')
     + "{ 'command': 'a', 'data': { 'b': 'str' } }", "3: 'a': member 'b' is not documented"),
    ('member not described', doc('@a:', '', 'Text.', '', '@b:')
     + "{ 'command': 'a', 'data': { 'b': 'str' } }", "6: member 'b' is not described"),
    ('member not there', doc('@a:', '', 'Text.', '', '@c: x')
     + "{ 'command': 'a', 'data': { 'b': 'str' } }", "6: 'a' has no member 'c'"),
    ('member documented twice', doc('@a:', '', 'Text.', '', '@b: x', '@b: y')
     + "{ 'command': 'a', 'data': { 'b': 'str' } }", "7: '@b' is documented twice"),
    ('member after a section', doc('@a:', '', 'Text.', '', 'Since: 1', '', '@b: y')
     + "{ 'command': 'a', 'data': { 'b': 'str' } }", "8: '@b:' must come before 'Since:'"),
    ('feature not documented', DOCS + doc('@a:', '', 'Text.', '', 'Since: 1')
     + "{ 'command': 'a', 'features': [ 'f' ] }", "3: 'a': feature 'f' is not documented"),
    ('no date', DOCS + doc('@a:', '', 'Text.') + "{ 'command': 'a' }",
     "3: 'a': 'Since:' is missing"),
    ('two dates', doc('@a:', '', 'Text.', '', 'Since: 1', 'Since: 2') + "{ 'command': 'a' }",
     "7: 'Since:' is given twice"),
    ('nothing returned', doc('@a:', '', 'Text.', '', 'Returns: x') + "{ 'command': 'a' }",
     "6: 'a' returns nothing"),
]


def load_text(text: str) -> Schema:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'schema.json'
        path.write_text(text, encoding='utf-8')
        return load_schema(str(path))


def refusal(text: str) -> str:
    """The error, from the line number on."""
    try:
        load_text(text)
    except SchemaError as error:
        return str(error).split('schema.json:', 1)[-1]
    return 'accepted'


def check(condition: bool, what: str) -> None:
    if not condition:
        raise AssertionError(what)


def same(left: object, right: object) -> None:
    check(left == right, f'{left!r} is not {right!r}')


# --- what good schemas turn into ---


def names() -> None:
    same(c_name('node-name'), 'node_name')
    same(c_name('unix'), 'q_unix')
    same(c_name('default'), 'q_default')
    same(c_name('0.10'), 'q_0_10')
    same(snake('BlockdevOptionsQcow2'), 'blockdev_options_qcow2')
    same(snake('IOThreadInfoList'), 'io_thread_info_list')
    same(camel('block_resize'), 'BlockResize')
    same(enum_constant('BlockdevDriver', 'host_device'), 'BLOCKDEV_DRIVER_HOST_DEVICE')
    same(enum_constant('JSONType', 'int'), 'JSON_TYPE_INT')


def base_used_before_it_is_defined() -> None:
    schema = load_text("{ 'struct': 'Aa', 'base': 'Bb', 'data': { 'x': 'str' } }\n"
                       "{ 'struct': 'Bb', 'data': { 'y': 'str' } }")
    entity = schema.entities[0]
    assert isinstance(entity, Object)
    same([member.name for member in entity.members], ['y', 'x'])


def files_are_read_once() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, part = Path(folder) / 'root.json', Path(folder) / 'part.json'
        root.write_text("{ 'include': 'part.json' }\n{ 'include': './part.json' }")
        part.write_text("{ 'include': 'root.json' }\n{ 'enum': 'Ee', 'data': [ 'x' ] }")
        same(len(load_schema(str(root)).entities), 1)


def branches_are_defined_before_unions() -> None:
    header = generate_types(load_schema(str(ALL_KINDS)))[0].text()
    check(header.index('struct NamedPoint {') < header.index('struct Shape {'), 'order of structs')


def output_depends_on_the_schema_alone() -> None:
    texts = [[file.text() for file in generate_types(load_schema(str(SCHEMA)))] for _ in range(2)]
    same(texts[0], texts[1])


def introspection_is_closed() -> None:
    """Every type that an element refers to is there; nothing is there twice."""
    elements = introspection(load_schema(str(SCHEMA)))
    known = [str(element['name']) for element in elements]
    same(len(known), len(set(known)))
    used: Set[str] = set()
    for element in elements:
        used.update(str(element[key]) for key in ('arg-type', 'ret-type', 'element-type')
                    if key in element)
        if element['meta-type'] != 'enum':
            used.update(str(member['type']) for member in element.get('members', []))
        used.update(str(variant['type']) for variant in element.get('variants', []))
    same(sorted(used - set(known)), [])


def introspection_hides_names_of_types() -> None:
    for element in introspection(load_schema(str(ALL_KINDS))):
        if element['meta-type'] in ('object', 'enum', 'alternate'):
            check(str(element['name']).isdigit(), f"name {element['name']}")


def introspection_of_a_union() -> None:
    by_name = {str(element['name']): element
               for element in introspection(load_schema(str(ALL_KINDS)))}
    shape = by_name[str(by_name['put-shape']['arg-type'])]
    same(shape['tag'], 'color')
    same([member['name'] for member in shape['members']], ['color', 'label'])
    same(shape['members'][1]['default'], None)
    cases = {variant['case']: by_name[variant['type']] for variant in shape['variants']}
    same([member['name'] for member in cases['red']['members']], ['x', 'y', 'name', 'default'])
    same(cases['dark-green']['members'], [])


def manual_has_every_definition() -> None:
    schema = load_schema(str(SCHEMA))
    text = reference_manual(schema)
    for entity in schema.entities:
        if not (isinstance(entity, Object) and entity.implicit):
            check(f'.. _{entity.name}:' in text, f'{entity.name} is not in the manual')


def manual_is_valid_rst() -> None:
    program = shutil.which('rst2html')
    if not program:
        raise unittest.SkipTest('rst2html is not installed')
    run = subprocess.run([program, '--report=2', '--halt=2', '-', os.devnull], check=False,
                         input=reference_manual(load_schema(str(SCHEMA))), capture_output=True,
                         text=True)
    same(run.stderr, '')


GOOD: List[Callable[[], None]] = [
    names, base_used_before_it_is_defined, files_are_read_once, branches_are_defined_before_unions,
    output_depends_on_the_schema_alone, introspection_is_closed,
    introspection_hides_names_of_types, introspection_of_a_union, manual_has_every_definition,
    manual_is_valid_rst]


def outcome(test: Callable[[], None]) -> Tuple[str, str]:
    """What went wrong, and why it was skipped."""
    try:
        test()
    except AssertionError as error:
        return str(error), ''
    except unittest.SkipTest as reason:
        return '', str(reason)
    return '', ''


def main() -> int:
    results: List[Tuple[str, str, str]] = []
    for name, text, expected in REFUSED:
        said = refusal(text)
        results.append((f'refuses: {name}', '' if said.startswith(expected) else said, ''))
    for test in GOOD:
        results.append((test.__name__.replace('_', ' '), *outcome(test)))
    print(f'1..{len(results)}')
    for number, (name, problem, skip) in enumerate(results, 1):
        tail = f' # SKIP {skip}' if skip else ''
        print(f"{'not ' if problem else ''}ok {number} - {name}{tail}")
        if problem:
            print(f'# {problem}')
    return 1 if any(problem for _, problem, _ in results) else 0


if __name__ == '__main__':
    sys.exit(main())
