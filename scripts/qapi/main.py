# SPDX-License-Identifier: MIT
"""The command line of the generator."""

from __future__ import annotations

import argparse
import sys
from typing import List

from .build import load_schema
from .c_codec import generate_codec
from .c_types import generate_types
from .errors import SchemaError
from .output import CFile, write_file


def main(arguments: List[str]) -> int:
    parser = argparse.ArgumentParser(
        prog='qapi-gen.py', description='Generate C sources and documents from a QAPI schema.')
    parser.add_argument('-o', '--output-dir', default='.', help='where to write (default: here)')
    parser.add_argument('schema', help='the root file of the schema')
    options = parser.parse_args(arguments)
    try:
        schema = load_schema(options.schema)
    except SchemaError as error:
        print(f'{parser.prog}: {error}', file=sys.stderr)
        return 1
    files: List[CFile] = []
    for generate in (generate_types, generate_codec):
        files += generate(schema)
    for file in files:
        write_file(options.output_dir, file.name, file.text())
    return 0
