# SPDX-License-Identifier: MIT
"""Spelling of C identifiers."""

from __future__ import annotations

import re

# Words that C, its standard headers or the compiler's predefined macros take away from us.
RESERVED = frozenset('''
    auto break case char const continue default do double else enum extern float for goto if int
    long register return short signed sizeof static struct switch typedef union unsigned void
    volatile while inline restrict asm typeof unix linux i386 errno bool true false
    '''.split())


def c_name(name: str) -> str:
    """A member or branch name as C writes it: `node-name` is `node_name`, `if` is `q_if`."""
    spelled = re.sub(r'[^A-Za-z0-9_]', '_', name)
    if spelled in RESERVED or spelled[0].isdigit():
        return f'q_{spelled}'
    return spelled


def snake(camel: str) -> str:
    """`BlockdevOptionsQcow2` is `blockdev_options_qcow2`, `IOThreadInfo` is `io_thread_info`."""
    text = re.sub(r'([A-Z]+)([A-Z][a-z])', r'\1_\2', camel)
    text = re.sub(r'([a-z0-9])([A-Z])', r'\1_\2', text)
    return text.lower()


def upper(camel: str) -> str:
    return snake(camel).upper()


def enum_constant(enum: str, value: str, prefix: str = '') -> str:
    """`BlockdevDriver`, `null-co` is `BLOCKDEV_DRIVER_NULL_CO`."""
    spelled = re.sub(r'[^A-Za-z0-9]', '_', value).upper()
    return f'{prefix or upper(enum)}_{spelled}'


def camel(dashed: str) -> str:
    """`block-export-add` is `BlockExportAdd`, for the names of argument structs."""
    return ''.join(word[:1].upper() + word[1:].lower() for word in re.split(r'[-_]', dashed))
