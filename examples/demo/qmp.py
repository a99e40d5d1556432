# SPDX-License-Identifier: MIT
"""A QMP client that shows what it says."""

import json
import socket
from typing import Any


class QmpError(Exception):
    """The server refused a command."""


class Qmp:
    """One QMP session over a connected socket. `show` receives a line for each message worth showing."""

    def __init__(self, connection: socket.socket, show: Any = None):
        self._show = show
        self._socket = connection
        self._stream = self._socket.makefile("rw", encoding="utf-8", newline="\n")
        self.greeting: dict[str, Any] = self._read()
        self.events: list[dict[str, Any]] = []
        self.run("qmp_capabilities", quiet=True)

    def _read(self) -> dict[str, Any]:
        line = self._stream.readline()
        if not line:
            raise QmpError("the server closed the session")
        message: dict[str, Any] = json.loads(line)
        return message

    def run(self, command: str, quiet: bool = False, **arguments: Any) -> Any:
        """Send a command, wait for its reply, return what it returned. Underscores in argument
        names stand for dashes."""
        message: dict[str, Any] = {"execute": command}
        if arguments:
            message["arguments"] = {k.replace("_", "-"): v for k, v in arguments.items()}
        if self._show and not quiet:
            self._show(message)
        self._stream.write(json.dumps(message) + "\n")
        self._stream.flush()
        while True:
            reply = self._read()
            if "event" in reply:
                self.events.append(reply)
            elif "error" in reply:
                raise QmpError(f"{command}: {reply['error']['desc']}")
            else:
                return reply["return"]

    def wait_event(self, name: str, **data: Any) -> dict[str, Any]:
        """Wait for an event whose data has these members; it is taken off the list."""
        while True:
            for event in self.events:
                members = event.get("data", {})
                if event["event"] == name and data.items() <= members.items():
                    self.events.remove(event)
                    return event
            message = self._read()
            if "event" in message:
                self.events.append(message)

    def close(self) -> None:
        """End the session; the server goes on."""
        self._stream.close()
        self._socket.close()
