# SPDX-License-Identifier: MIT
"""qapi-events.h and qapi-events.c: a function for sending each event."""

from __future__ import annotations

from typing import List

from .c_commands import parameter
from .c_types import c_type, has_flag, is_pointer, table
from .model import Event, Member, Schema
from .names import c_name
from .output import CFile

CONTRACT = '''Sending of events, one function each. Nothing that is passed in is kept. They leave through the one
function pointer of qapi/event.h; call them on the main thread.'''


def _prototype(event: Event) -> str:
    parameters: List[str] = []
    if event.arguments and event.boxed:
        parameters.append(f'const {event.arguments.name} *arg')
    elif event.arguments:
        for member in event.arguments.members:
            parameters += parameter(member)
    return f'void qapi_event_send_{c_name(event.name.lower())}({", ".join(parameters) or "void"})'


def _initializers(member: Member) -> List[str]:
    """The struct only lends pointers to the encoder, which leaves them alone."""
    name = c_name(member.name)
    if is_pointer(member.type):
        return [f'        .{name} = ({c_type(member.type)}){name},']
    flag = f'has_{name.removeprefix("q_")}'
    lines = [f'        .{flag} = {flag},'] if has_flag(member) else []
    return [*lines, f'        .{name} = {name},']


def _body(event: Event) -> List[str]:
    arguments = event.arguments
    if not arguments:
        return [f'    qapi_event_send("{event.name}", NULL);']
    if event.boxed:
        return [f'    qapi_event_send("{event.name}", qapi_encode(&{table(arguments)}, arg));']
    lines = [f'    const {arguments.name} data = {{']
    for member in arguments.members:
        lines += _initializers(member)
    return [*lines, '    };', '',
            f'    qapi_event_send("{event.name}", qapi_encode(&{table(arguments)}, &data));']


def generate_events(schema: Schema) -> List[CFile]:
    header = CFile('qapi-events.h', CONTRACT)
    source = CFile('qapi-events.c')
    header.add('#include "qapi-types.h"')
    header.gap()
    source.add('#include "qapi-events.h"\n#include "qapi/codec.h"\n#include "qapi/event.h"')
    for event in schema.events():
        header.add(f'{_prototype(event)};')
        source.gap()
        source.add('\n'.join([_prototype(event), '{', *_body(event), '}']))
    return [header, source]
