#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What QEMU answers comes through Merino's decoder and encoder as the same text, to the byte.

So the types are complete, and members are printed in QEMU's order.
Usage: test_replies.py PATH-OF-REPRINT
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import List, Tuple

from oracle import STORAGE_DAEMON, SYSTEM, Oracle, why_not

Reply = Tuple[str, str, str]  # name of the case, type, JSON

THROTTLED = ('node-name=top,throttling.group=g,throttling.iops-size=4096,'
             'throttling.bps-total=1000000,throttling.bps-total-max=2000000,'
             'throttling.bps-total-max-length=3,throttling.iops-read=100,'
             'throttling.iops-read-max=200,throttling.iops-read-max-length=4,'
             'throttling.iops-write=100,throttling.iops-write-max=200')


def ask(oracle: Oracle, type_: str, command: str, **arguments: object) -> Reply:
    request = {'execute': command, 'arguments': arguments}
    line = oracle.ask_text(request)
    return command, type_, line.removeprefix('{"return": ').removesuffix('}')


def machine(folder: Path) -> List[Reply]:
    """A disk with everything that a disk can report: backing, snapshot, bitmaps, throttling."""
    for arguments in (['create', '-q', '-f', 'qcow2', 'base.qcow2', '1M'],
                      ['create', '-q', '-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2',
                       'disk.qcow2'],
                      ['snapshot', '-c', 'snap', 'disk.qcow2']):
        subprocess.run(['qemu-img', *arguments], cwd=folder, check=True)
    drive = f'if=none,id=d0,file={folder}/disk.qcow2,{THROTTLED}'
    with Oracle([*SYSTEM, '-object', 'iothread,id=t0', '-drive', drive]) as oracle:
        oracle.ask('block-dirty-bitmap-add', {'node': 'top', 'name': 'b0', 'persistent': True})
        oracle.ask('block-dirty-bitmap-add', {'node': 'top', 'name': 'b1', 'disabled': True})
        return [ask(oracle, 'BlockInfoList', 'query-block'),
                ask(oracle, 'BlockDeviceInfoList', 'query-named-block-nodes'),
                ask(oracle, 'BlockDeviceInfoList', 'query-named-block-nodes', flat=True),
                ask(oracle, 'IOThreadInfoList', 'query-iothreads'),
                ask(oracle, 'BlockDirtyBitmapSha256', 'x-debug-block-dirty-bitmap-sha256',
                    node='top', name='b0')]


def daemon(folder: Path) -> List[Reply]:
    address = {'type': 'unix', 'data': {'path': f'{folder}/nbd.sock'}}
    with Oracle(STORAGE_DAEMON) as oracle:
        oracle.ask('blockdev-add', {'driver': 'null-co', 'node-name': 'n', 'size': 4096})
        oracle.ask('nbd-server-start', {'addr': address})
        oracle.ask('block-export-add', {'type': 'nbd', 'id': 'e', 'node-name': 'n'})
        return [ask(oracle, 'BlockExportInfoList', 'query-block-exports'),
                ask(oracle, 'VersionInfo', 'query-version'),
                ask(oracle, 'CommandInfoList', 'query-commands'),
                ask(oracle, 'SchemaInfoList', 'query-qmp-schema')]


def main() -> int:
    for program in (STORAGE_DAEMON[0], SYSTEM[0], 'qemu-img'):
        if reason := why_not(program):
            print(f'1..0 # SKIP {reason}')
            return 0
    with tempfile.TemporaryDirectory() as folder:
        replies = machine(Path(folder)) + daemon(Path(folder))
    lines = ''.join(f'{type_} {text}\n' for _, type_, text in replies)
    run = subprocess.run([sys.argv[1]], input=lines, capture_output=True, text=True, check=True)
    print(f'1..{len(replies)}')
    failed = 0
    for number, ((name, _, text), printed) in enumerate(zip(replies, run.stdout.splitlines()), 1):
        good = text == printed
        failed += not good
        print(f"{'' if good else 'not '}ok {number} - {name}")
        if not good:
            print(f'# QEMU: {text[:2000]}\n# Merino: {printed[:2000]}')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
