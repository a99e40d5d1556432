# SPDX-License-Identifier: MIT
"""The command line of the generator."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Callable, List

from .build import load_schema
from .c_codec import generate_codec
from .c_commands import generate_commands
from .c_events import generate_events
from .c_introspect import generate_introspect
from .c_types import generate_types
from .errors import SchemaError
from .model import Schema
from .output import CFile, write_file
from .rst_reference import reference_manual

BACKENDS: List[Callable[[Schema], List[CFile]]] = [
    generate_types, generate_codec, generate_commands, generate_events, generate_introspect]


def write_dependencies(path: str, target: str, schema: Schema) -> None:
    """For ninja: the files of the schema, and the modules of this program."""
    modules = [str(module.__file__) for name, module in sys.modules.items()
               if name.split('.')[0] == __name__.split('.')[0]]
    files = ' '.join(name.replace(' ', '\\ ') for name in [*schema.files, *modules])
    directory, name = os.path.split(path)
    write_file(directory or '.', name, f'{target}: {files}\n')


def main(arguments: List[str]) -> int:
    parser = argparse.ArgumentParser(
        prog='qapi-gen.py', description='Generate C sources and a manual from a QAPI schema.')
    parser.add_argument('-o', '--output-dir', default='.', help='where to write (default: here)')
    parser.add_argument('--depfile', help='tell in this file what the output is made from')
    parser.add_argument('--target', default='qapi-types.h', help='what the output is called there')
    parser.add_argument('schema', help='the root file of the schema')
    options = parser.parse_args(arguments)
    try:
        schema = load_schema(options.schema)
    except SchemaError as error:
        print(f'{parser.prog}: {error}', file=sys.stderr)
        return 1
    for generate in BACKENDS:
        for file in generate(schema):
            write_file(options.output_dir, file.name, file.text())
    write_file(options.output_dir, 'qmp-reference.rst', reference_manual(schema))
    if options.depfile:
        write_dependencies(options.depfile, options.target, schema)
    return 0
