# SPDX-License-Identifier: MIT
"""qapi-commands.h and qapi-commands.c: handlers' prototypes, and the table that calls them."""

from __future__ import annotations

from typing import List

from .c_types import c_type, has_flag, is_pointer, table
from .model import Builtin, Command, Member, Schema, Type
from .names import c_name
from .output import CFile

CONTRACT = '''The handlers of all commands, and the table of commands that calls them (qapi/dispatch.h).

A handler gets decoded arguments, which it must not keep. Absent ones are as absent members are in
structs. It runs on the main thread. What it returns is the caller's. On failure it sets the
error and returns false or NULL; a list without elements is not NULL.'''


def parameter(member: Member) -> List[str]:
    """The C parameters of one member; what they point at is the caller's."""
    name = c_name(member.name)
    if is_pointer(member.type):
        return [f'const {c_type(member.type)}{name}']
    flag = [f'bool has_{name.removeprefix("q_")}'] if has_flag(member) else []
    return [*flag, f'{c_type(member.type)}{name}']


def _returns_value(type_: Type) -> bool:
    """Whether the handler's own result is what the command returns."""
    return is_pointer(type_)


def _result_type(command: Command) -> str:
    if not command.gen:
        return 'json_t *'
    if command.returns and _returns_value(command.returns):
        return c_type(command.returns)
    return 'bool '


def _parameters(command: Command) -> List[str]:
    result: List[str] = []
    arguments = command.arguments
    if arguments and command.boxed:
        result.append(f'const {arguments.name} *arg')
    elif arguments:
        for member in arguments.members:
            result += parameter(member)
    if command.gen and command.returns and not _returns_value(command.returns):
        result.append(f'{c_type(command.returns)}*ret')
    return result + ['GError **error']


def handler(command: Command) -> str:
    return f'qmp_{c_name(command.name)}'


def _header(schema: Schema) -> CFile:
    out = CFile('qapi-commands.h', CONTRACT)
    out.add('#include "qapi-types.h"')
    out.gap()
    for command in schema.commands():
        parameters = ', '.join(_parameters(command))
        out.add(f'{_result_type(command)}{handler(command)}({parameters});')
    return out


def _call_arguments(command: Command) -> str:
    parts: List[str] = []
    arguments = command.arguments
    if arguments and command.boxed:
        parts.append('args')
    elif arguments:
        for member in arguments.members:
            name = c_name(member.name)
            if has_flag(member):
                parts.append(f'args->has_{name.removeprefix("q_")}')
            parts.append(f'args->{name}')
    if command.gen and command.returns and not _returns_value(command.returns):
        parts.append('&value')
    return ', '.join(parts + ['error'])


def _declarations(command: Command) -> List[str]:
    lines: List[str] = []
    if command.arguments:
        name = command.arguments.name
        lines.append(f'    g_autoptr({name}) args = NULL;')
    returns = command.returns
    if not command.gen:
        lines.append('    json_t *value;')
    elif isinstance(returns, Builtin):
        auto = 'g_autofree ' if returns.name == 'str' else ''
        lines.append(f'    {auto}{c_type(returns)}value{" = NULL" if auto else ""};')
    elif returns and _returns_value(returns):
        lines.append(f'    g_autoptr({c_type(returns).rstrip(" *")}) value = NULL;')
    elif returns:
        lines.append(f'    {c_type(returns)}value;')
    return lines


def _body(command: Command) -> List[str]:
    """From decoded arguments to `*ret`."""
    call = f'{handler(command)}({_call_arguments(command)})'
    returns = command.returns
    if not returns:
        return [f'    if (!{call}) {{', '        return false;', '    }',
                '    *ret = json_object();', '    return true;']
    if command.gen and not _returns_value(returns):
        lines = [f'    if (!{call}) {{', '        return false;', '    }']
    else:
        lines = [f'    value = {call};', '    if (!value) {', '        return false;', '    }']
    if not command.gen or (isinstance(returns, Builtin) and returns.name == 'any'):
        lines.append('    *ret = value;')
    elif isinstance(returns, Builtin) or not _returns_value(returns):
        lines.append(f'    *ret = qapi_encode_slot(&{table(returns)}, &value);')
    else:
        lines.append(f'    *ret = qapi_encode(&{table(returns)}, value);')
    return lines + ['    return true;']


def _decode(command: Command) -> List[str]:
    arguments = command.arguments
    if not arguments:
        return ['    if (!qapi_no_arguments(arguments, error)) {', '        return false;', '    }']
    return [f'    args = qapi_decode(&{table(arguments)}, arguments, QAPI_DECODE_JSON, error);',
            '    if (!args) {', '        return false;', '    }']


def _runner(out: CFile, command: Command) -> None:
    declarations = _declarations(command)
    lines = [f'static bool run_{c_name(command.name)}(const json_t *arguments, json_t **ret, '
             'GError **error)', '{', *declarations]
    if declarations:
        lines.append('')
    out.gap()
    out.add('\n'.join([*lines, *_decode(command), *_body(command), '}']))


def _source(schema: Schema) -> CFile:
    out = CFile('qapi-commands.c')
    out.add('#include "qapi-commands.h"\n#include "qapi/codec.h"\n#include "qapi/dispatch.h"')
    out.gap()
    out.add('#include <jansson.h>')
    for command in schema.commands():
        _runner(out, command)
    rows = '\n'.join(f'    {{ "{command.name}", run_{c_name(command.name)} }},'
                     for command in schema.commands())
    out.gap()
    out.add(f'const QapiCommand qapi_commands[] = {{\n{rows}\n    {{ NULL, NULL }},\n}};')
    return out


def generate_commands(schema: Schema) -> List[CFile]:
    return [_header(schema), _source(schema)]
