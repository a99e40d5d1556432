# SPDX-License-Identifier: MIT
"""qapi-codec.h and qapi-codec.c: typed decoding and encoding."""

from __future__ import annotations

from typing import List

from .c_types import type_names
from .model import Schema
from .names import snake
from .output import CFile

CONTRACT = '''Typed forms of the functions of include/qapi/codec.h: foo_decode(), foo_decode_keyval() and
foo_encode() for every object, alternate and list type Foo.'''


def generate_codec(schema: Schema) -> List[CFile]:
    header = CFile('qapi-codec.h', CONTRACT)
    source = CFile('qapi-codec.c')
    header.add('#include "qapi-types.h"\n#include "qapi/codec.h"')
    source.add('#include "qapi-codec.h"')
    for name in type_names(schema):
        verb = snake(name)
        header.gap()
        header.add(f'''
{name} *{verb}_decode(const json_t *in, GError **error);
{name} *{verb}_decode_keyval(const json_t *in, GError **error);
json_t *{verb}_encode(const {name} *value);
''')
        source.gap()
        source.add(f'''
{name} *{verb}_decode(const json_t *in, GError **error)
{{
    return qapi_decode(&qapi_type_{name}, in, QAPI_DECODE_JSON, error);
}}

{name} *{verb}_decode_keyval(const json_t *in, GError **error)
{{
    return qapi_decode(&qapi_type_{name}, in, QAPI_DECODE_KEYVAL, error);
}}

json_t *{verb}_encode(const {name} *value)
{{
    return qapi_encode(&qapi_type_{name}, value);
}}
''')
    return [header, source]
