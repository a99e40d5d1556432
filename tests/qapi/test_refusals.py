#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The sentences of refusals.json are QEMU's.

test-qapi-refusals checks the same table against Merino's decoder.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

from oracle import STORAGE_DAEMON, Oracle, why_not

TABLE = Path(__file__).parent / 'refusals.json'


def option_words(option: str, text: str) -> str:
    """What the storage daemon says of an option; what it says of the next one if that one is good."""
    run = subprocess.run([STORAGE_DAEMON[0], option, text, '--blockdev', '{'], capture_output=True,
                         text=True, check=False, stdin=subprocess.DEVNULL, timeout=30)
    return run.stderr.strip().removeprefix(f'{STORAGE_DAEMON[0]}: {option} {text}: ')


def command_words(oracle: Oracle, row: Dict[str, Any]) -> str:
    answer = oracle.ask(row['execute'], row.get('arguments'))
    return str(answer['error']['desc']) if 'error' in answer else f'accepted: {answer}'


def main() -> int:
    rows = json.loads(TABLE.read_text(encoding='utf-8'))['rows']
    reason = why_not(STORAGE_DAEMON[0])
    if reason:
        print(f'1..0 # SKIP {reason}')
        return 0
    print(f'1..{len(rows)}')
    failed = 0
    with Oracle(STORAGE_DAEMON) as oracle:
        for number, row in enumerate(rows, 1):
            name = f"{row.get('execute') or row['option']}: {row['desc']}"
            said = (command_words(oracle, row) if 'execute' in row
                    else option_words(row['option'], row['text']))
            good = said == row['desc']
            failed += not good
            escaped = name.replace('#', '\\#').encode('ascii', 'backslashreplace').decode()
            print(f"{'' if good else 'not '}ok {number} - {escaped}")
            if not good:
                print(f'# QEMU says: {said!r}')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
