# SPDX-License-Identifier: MIT
"""qapi-types.h and qapi-types.c: the C types, their tables, and what every type can do."""

from __future__ import annotations

from typing import List, Set, Tuple

from .model import (Alternate, Builtin, Enum, List_, Member, Object, Schema,
                    Type)
from .names import c_name, enum_constant, snake, upper
from .output import CFile

CONTRACT = '''The C types of the schema. include/qapi/type.h says how members stand in structs and who owns
what they point at; the reference manual says what they mean.

For every object, alternate and list type Foo there are foo_free() (NULL ok), foo_clone() and
g_autoptr(Foo); for every list foo_list_append(), which takes over its item. Make objects and lists
with g_new0(). For every enum there are Foo_str() and Foo_parse().'''


def is_pointer(type_: Type) -> bool:
    return type_.pointer if isinstance(type_, Builtin) else not isinstance(type_, Enum)


def c_type(type_: Type) -> str:
    """The type of a slot, ready to be followed by a name."""
    if isinstance(type_, Builtin):
        return type_.ctype if type_.ctype.endswith('*') else f'{type_.ctype} '
    if isinstance(type_, Enum):
        return f'{type_.name} '
    return f'{type_.name} *'


def table(type_: Type) -> str:
    """The name of the type's QapiType."""
    return f'qapi_type_{type_.name}'


def has_flag(member: Member) -> bool:
    return member.optional and not is_pointer(member.type)


def all_lists(schema: Schema) -> List[List_]:
    """Lists that the schema uses, and one for every object: handlers build them."""
    lists = {list_.name: list_ for list_ in schema.lists.values()}
    for entity in schema.objects():
        if not entity.implicit:
            lists.setdefault(f'{entity.name}List', List_(entity))
    return [lists[name] for name in sorted(lists)]


def type_names(schema: Schema) -> List[str]:
    """Of everything that lives on the heap: objects, alternates and lists."""
    types: List[Type] = [*schema.objects(), *schema.alternates(), *all_lists(schema)]
    return sorted(type_.name for type_ in types)


def by_value_order(objects: List[Object]) -> List[Object]:
    """Objects with those before them that stand in them by value: the branches of unions."""
    result: List[Object] = []
    seen: Set[str] = set()

    def visit(entity: Object) -> None:
        if entity.name in seen:
            return
        seen.add(entity.name)
        for branch in entity.used_branches():
            visit(branch.type)
        result.append(entity)

    for entity in objects:
        visit(entity)
    return result


# --- the header ---


def _enum(out: CFile, entity: Enum) -> None:
    out.gap()
    out.add(f'typedef enum {entity.name} {{')
    for value in entity.values:
        out.add(f'    {enum_constant(entity.name, value.name, entity.prefix)},')
    out.add(f'''
    {entity.prefix or upper(entity.name)}__MAX,
}} {entity.name};

extern const QapiType {table(entity)};

/* The schema's spelling. */
const char *{entity.name}_str({entity.name} value);
/* False, and nothing written, for text that is no value. */
bool {entity.name}_parse(const char *text, {entity.name} *ret);
''')


def _member_lines(members: List[Member]) -> List[str]:
    lines: List[str] = []
    for member in members:
        if has_flag(member):
            lines.append(f'    bool has_{c_name(member.name).removeprefix("q_")};')
        lines.append(f'    {c_type(member.type)}{c_name(member.name)};')
    return lines


def _struct(out: CFile, entity: Object) -> None:
    lines = _member_lines(entity.members)
    branches = list(entity.used_branches())
    if branches:
        lines.append('    union {')
        lines += [f'        {branch.type.name} {c_name(branch.case)};' for branch in branches]
        lines.append('    } u;')
    if not lines:
        lines.append('    char q_empty; /* C knows no empty structs */')
    out.gap()
    out.add('\n'.join([f'struct {entity.name} {{', *lines, '};']))


def _alternate(out: CFile, entity: Alternate) -> None:
    kind = f'{entity.name}Type'
    out.gap()
    out.add(f'typedef enum {kind} {{')
    for branch in entity.branches:
        out.add(f'    {enum_constant(kind, branch.name)},')
    out.add(f'}} {kind};')
    out.gap()
    out.add(f'struct {entity.name} {{\n    {kind} type;\n    union {{')
    for branch in entity.branches:
        out.add(f'        {c_type(branch.type)}{c_name(branch.name)};')
    out.add('    } u;\n};')


def _list(out: CFile, list_: List_) -> None:
    out.gap()
    out.add(f'struct {list_.name} {{\n    size_t len;\n    {c_type(list_.element)}*items;\n}};')


def _functions(out: CFile, name: str) -> None:
    verb = snake(name)
    out.gap()
    out.add(f'''
extern const QapiType qapi_type_{name};
void {verb}_free({name} *value);
{name} *{verb}_clone(const {name} *value);
G_DEFINE_AUTOPTR_CLEANUP_FUNC({name}, {verb}_free)
''')


def _append_prototype(list_: List_) -> str:
    return (f'void {snake(list_.name)}_append({list_.name} *list, '
            f'{c_type(list_.element)}item)')


def _header(schema: Schema) -> CFile:
    out = CFile('qapi-types.h', CONTRACT)
    lists = all_lists(schema)
    objects = by_value_order(schema.objects())
    alternates = schema.alternates()
    out.add('#include "qapi/type.h"')
    for enum in schema.enums():
        _enum(out, enum)
    names = type_names(schema)
    out.gap()
    out.add('\n'.join(f'typedef struct {name} {name};' for name in names))
    for list_ in lists:
        _list(out, list_)
    for alternate in alternates:
        _alternate(out, alternate)
    for entity in objects:
        _struct(out, entity)
    for name in names:
        _functions(out, name)
    out.gap()
    for list_ in lists:
        out.add(f'{_append_prototype(list_)};')
    return out


# --- the tables ---


def _enum_source(out: CFile, entity: Enum) -> None:
    count = f'{entity.prefix or upper(entity.name)}__MAX'
    names = '\n'.join(f'    "{value.name}",' for value in entity.values)
    out.gap()
    out.add(f'''
static const char *const names_{entity.name}[] = {{
{names}
}};

const QapiType {table(entity)} = {{
    .name = "{entity.name}",
    .kind = QAPI_ENUM,
    .size = sizeof({entity.name}),
    .as.enumeration = {{ names_{entity.name}, {count} }},
}};

const char *{entity.name}_str({entity.name} value)
{{
    g_assert(value < {count});
    return names_{entity.name}[value];
}}

bool {entity.name}_parse(const char *text, {entity.name} *ret)
{{
    int value = qapi_enum_parse(&{table(entity)}, text);

    if (value >= 0) {{
        *ret = ({entity.name})value;
    }}
    return value >= 0;
}}
''')


def _member_row(struct: str, member: Member) -> str:
    field = c_name(member.name)
    parts = [f'"{member.name}"', f'&{table(member.type)}', f'offsetof({struct}, {field})']
    if has_flag(member):
        parts.append(f'offsetof({struct}, has_{field.removeprefix("q_")})')
    else:
        parts.append('0')
    parts.append('true' if member.optional else 'false')
    return '    { ' + ', '.join(parts) + ' },'


def _union_parts(entity: Object) -> Tuple[str, str]:
    """The table of branches, and the lines that put it into the type."""
    if not entity.tag:
        return '', ''
    assert isinstance(entity.tag.type, Enum)
    enum = entity.tag.type
    used = list(entity.used_branches())
    rows = '\n'.join(
        f'    [{enum_constant(enum.name, branch.case, enum.prefix)}] = &{table(branch.type)},'
        for branch in used)
    count = f'{enum.prefix or upper(enum.name)}__MAX'
    names = [member.name for member in entity.members]
    branches = (f'static const QapiType *const branches_{entity.name}[{count}] = {{\n{rows}\n}};\n')
    fields = (f'        .tag = &members_{entity.name}[{names.index(entity.tag.name)}],\n'
              f'        .branches = branches_{entity.name},\n')
    if used:
        fields += f'        .u_offset = offsetof({entity.name}, u),\n'
    return branches, fields


def _object_source(out: CFile, entity: Object) -> None:
    members = entity.members
    branches, union_fields = _union_parts(entity)
    fields = union_fields
    out.gap()
    if members:
        rows = '\n'.join(_member_row(entity.name, member) for member in members)
        out.add(f'static const QapiMember members_{entity.name}[] = {{\n{rows}\n}};\n')
        fields = (f'        .members = members_{entity.name},\n'
                  f'        .n_members = {len(members)},\n') + fields
    if branches:
        out.add(branches)
    as_object = f'    .as.object = {{\n{fields}    }},\n' if fields else ''
    out.add(f'''
const QapiType {table(entity)} = {{
    .name = "{entity.name}",
    .kind = QAPI_OBJECT,
    .size = sizeof({entity.name}),
{as_object}}};
''')


def _alternate_source(out: CFile, entity: Alternate) -> None:
    kind = f'{entity.name}Type'
    rows = '\n'.join(f'    [{enum_constant(kind, branch.name)}] = &{table(branch.type)},'
                     for branch in entity.branches)
    out.gap()
    out.add(f'''
static const QapiType *const branches_{entity.name}[] = {{
{rows}
}};

const QapiType {table(entity)} = {{
    .name = "{entity.name}",
    .kind = QAPI_ALTERNATE,
    .size = sizeof({entity.name}),
    .as.alternate = {{
        .branches = branches_{entity.name},
        .n_branches = {len(entity.branches)},
        .type_offset = offsetof({entity.name}, type),
        .u_offset = offsetof({entity.name}, u),
    }},
}};
''')


def _list_source(out: CFile, list_: List_) -> None:
    out.gap()
    out.add(f'''
const QapiType {table(list_)} = {{
    .name = "{list_.name}",
    .kind = QAPI_LIST,
    .size = sizeof({list_.name}),
    .as.list = {{ &{table(list_.element)} }},
}};

{_append_prototype(list_)}
{{
    qapi_list_append(&{table(list_)}, list, &item);
}}
''')


def _function_sources(out: CFile, name: str) -> None:
    verb = snake(name)
    out.gap()
    out.add(f'''
void {verb}_free({name} *value)
{{
    qapi_value_free(&qapi_type_{name}, value);
}}

{name} *{verb}_clone(const {name} *value)
{{
    return qapi_value_clone(&qapi_type_{name}, value);
}}
''')


def _source(schema: Schema) -> CFile:
    out = CFile('qapi-types.c')
    lists, alternates = all_lists(schema), schema.alternates()
    objects = by_value_order(schema.objects())
    out.add('#include "qapi-types.h"')
    for enum in schema.enums():
        _enum_source(out, enum)
    for entity in objects:
        _object_source(out, entity)
    for alternate in alternates:
        _alternate_source(out, alternate)
    for list_ in lists:
        _list_source(out, list_)
    for name in type_names(schema):
        _function_sources(out, name)
    return out


def generate_types(schema: Schema) -> List[CFile]:
    return [_header(schema), _source(schema)]
