#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Generate C sources and documents from the QAPI schema; see scripts/qapi/__init__.py."""

import sys

from qapi.main import main

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
