#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A QEMU program to ask, one QMP line at a time."""

from __future__ import annotations

import json
import shutil
import subprocess
from types import TracebackType
from typing import Any, Dict, List, Optional, Type

STORAGE_DAEMON = ['qemu-storage-daemon', '--chardev', 'stdio,id=c', '--monitor', 'chardev=c']
SYSTEM = ['qemu-system-x86_64', '-M', 'none', '-nodefaults', '-display', 'none', '-qmp', 'stdio']
VERSION = '7.2'


def why_not(program: str) -> Optional[str]:
    """Why the program cannot be asked; None when it can."""
    if not shutil.which(program):
        return f'{program} is not installed'
    text = subprocess.run([program, '--version'], capture_output=True, text=True, check=True).stdout
    if f'version {VERSION}' not in text:
        return f'{program} is not of version {VERSION}'
    return None


class Oracle:
    """A running program; use it in a `with` statement."""

    def __init__(self, argv: List[str]) -> None:
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         text=True)
        self._read()  # the greeting
        self.ask('qmp_capabilities')

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError('the program closed the connection')
        return line

    def ask_text(self, request: Dict[str, Any]) -> str:
        """The line that answers; events are passed over."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + '\n')
        self._process.stdin.flush()
        while True:
            line = self._read()
            if 'event' not in json.loads(line):
                return line.rstrip('\r\n')

    def ask(self, command: str, arguments: Optional[Any] = None) -> Any:
        """The whole answer."""
        request: Dict[str, Any] = {'execute': command}
        if arguments is not None:
            request['arguments'] = arguments
        return json.loads(self.ask_text(request))

    def __enter__(self) -> Oracle:
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self._process.kill()
        self._process.communicate()
