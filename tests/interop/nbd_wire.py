# SPDX-License-Identifier: MIT
"""An NBD client that speaks the protocol message by message.

Real clients never send what a hostile or careless one does. This one sends whatever it is told to,
one message at a time, and returns what came back as plain values, so that a test can compare two
servers or look at a single field.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field

NBDMAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
EXTENDED_REQUEST_MAGIC = 0x21E41C71
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF
EXTENDED_REPLY_MAGIC = 0x6E8A278C

FIXED_NEWSTYLE = 1
NO_ZEROES = 2

OPT_EXPORT_NAME = 1
OPT_ABORT = 2
OPT_LIST = 3
OPT_STARTTLS = 5
OPT_INFO = 6
OPT_GO = 7
OPT_STRUCTURED_REPLY = 8
OPT_LIST_META_CONTEXT = 9
OPT_SET_META_CONTEXT = 10
OPT_EXTENDED_HEADERS = 11

REP_ACK = 1
REP_SERVER = 2
REP_INFO = 3
REP_META_CONTEXT = 4
REP_ERROR = 1 << 31

INFO_EXPORT = 0
INFO_NAME = 1
INFO_DESCRIPTION = 2
INFO_BLOCK_SIZE = 3

CMD_READ = 0
CMD_WRITE = 1
CMD_DISC = 2
CMD_FLUSH = 3
CMD_TRIM = 4
CMD_CACHE = 5
CMD_WRITE_ZEROES = 6
CMD_BLOCK_STATUS = 7

FLAG_FUA = 1
FLAG_NO_HOLE = 2
FLAG_DF = 4
FLAG_REQ_ONE = 8
FLAG_FAST_ZERO = 16
FLAG_PAYLOAD_LEN = 32

CHUNK_NONE = 0
CHUNK_OFFSET_DATA = 1
CHUNK_OFFSET_HOLE = 2
CHUNK_BLOCK_STATUS = 5
CHUNK_BLOCK_STATUS_EXT = 6
CHUNK_ERROR = 0x8001
CHUNK_ERROR_OFFSET = 0x8002


class Closed(Exception):
    """The server closed the connection."""


@dataclass
class Reply:
    """One simple reply, or one structured chunk."""

    kind: str
    cookie: int
    error: int = 0
    flags: int = 0
    type: int = 0
    offset: int = 0
    data: bytes = b""


@dataclass
class Answer:
    """All that came back for one request."""

    replies: list[Reply] = field(default_factory=list)

    @property
    def error(self) -> int:
        """The first error number in the replies; 0 when there is none."""
        for reply in self.replies:
            if reply.kind == "simple" and reply.error:
                return reply.error
            if reply.type & 0x8000:
                return int(struct.unpack_from(">I", reply.data)[0])
        return 0

    @property
    def message(self) -> str:
        """The words of the first error chunk."""
        for reply in self.replies:
            if reply.type & 0x8000:
                (length,) = struct.unpack_from(">H", reply.data, 4)
                return reply.data[6 : 6 + length].decode()
        return ""


class Wire:
    """One connection. `address` is a path (unix) or (host, port)."""

    def __init__(self, address: str | tuple[str, int], timeout: float = 60.0) -> None:
        if isinstance(address, str):
            self.sock = socket.socket(socket.AF_UNIX)
        else:
            self.sock = socket.socket(socket.AF_INET)
        self.sock.settimeout(timeout)
        self.sock.connect(address)
        self.structured = False
        self.extended = False

    def close(self) -> None:
        """Drop the connection."""
        self.sock.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.sock.sendall(data)

    def recv(self, count: int) -> bytes:
        """Receive exactly `count` bytes."""
        parts = []
        while count:
            try:
                part = self.sock.recv(min(count, 1 << 20))
            except ConnectionResetError:
                part = b""
            if not part:
                raise Closed
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def at_end(self) -> bool:
        """Whether the server closes the connection without sending anything more."""
        try:
            self.recv(1)
        except Closed:
            return True
        return False

    # --- negotiation ---

    def greet(self, flags: int = FIXED_NEWSTYLE | NO_ZEROES) -> int:
        """Read the greeting, answer with `flags`; returns the server's flags."""
        magic, opts, server = struct.unpack(">QQH", self.recv(18))
        assert (magic, opts) == (NBDMAGIC, IHAVEOPT)
        self.send(struct.pack(">I", flags))
        return int(server)

    def send_option(self, option: int, data: bytes = b"", length: int | None = None) -> None:
        """Send one option; `length` may lie."""
        length = len(data) if length is None else length
        self.send(struct.pack(">QII", IHAVEOPT, option, length) + data)

    def option_reply(self) -> tuple[int, int, bytes]:
        """Receive one option reply: option, type, payload."""
        magic, option, kind, length = struct.unpack(">QIII", self.recv(20))
        assert magic == REPLY_MAGIC
        return option, kind, self.recv(length)

    def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send one option and collect replies up to the final one."""
        self.send_option(option, data)
        replies = []
        while True:
            got, kind, payload = self.option_reply()
            assert got == option
            replies.append((kind, payload))
            if kind == REP_ACK or kind & REP_ERROR:
                break
        if replies[-1][0] == REP_ACK and option == OPT_STRUCTURED_REPLY:
            self.structured = True
        if replies[-1][0] == REP_ACK and option == OPT_EXTENDED_HEADERS:
            self.extended = self.structured = True
        return replies

    def go(self, name: str, infos: tuple[int, ...] = (), option: int = OPT_GO) -> list[
        tuple[int, bytes]
    ]:
        """NBD_OPT_GO or INFO."""
        raw = name.encode()
        data = struct.pack(">I", len(raw)) + raw
        data += struct.pack(f">H{len(infos)}H", len(infos), *infos)
        return self.option(option, data)

    def contexts(
        self, name: str, queries: list[str], option: int = OPT_SET_META_CONTEXT
    ) -> list[tuple[int, bytes]]:
        """NBD_OPT_SET_META_CONTEXT or LIST."""
        raw = name.encode()
        data = struct.pack(">I", len(raw)) + raw + struct.pack(">I", len(queries))
        for query in queries:
            data += struct.pack(">I", len(query.encode())) + query.encode()
        return self.option(option, data)

    # --- transmission ---

    def request_bytes(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        flags: int = 0,
        cookie: int = 1,
        payload: bytes = b"",
    ) -> bytes:
        """The bytes of one request in the negotiated form."""
        if self.extended:
            head = struct.pack(
                ">IHHQQQ", EXTENDED_REQUEST_MAGIC, flags, command, cookie, offset, length
            )
        else:
            head = struct.pack(">IHHQQI", REQUEST_MAGIC, flags, command, cookie, offset, length)
        return head + payload

    def reply(self, read_length: int = 0) -> Reply:
        """Receive one reply or chunk; a simple reply to a read has `read_length` bytes of data."""
        (magic,) = struct.unpack(">I", self.recv(4))
        if magic == SIMPLE_REPLY_MAGIC:
            error, cookie = struct.unpack(">IQ", self.recv(12))
            data = b"" if error else self.recv(read_length)
            return Reply("simple", cookie, error=error, data=data)
        if magic == STRUCTURED_REPLY_MAGIC:
            flags, kind, cookie, length = struct.unpack(">HHQI", self.recv(16))
            return Reply("chunk", cookie, flags=flags, type=kind, data=self.recv(length))
        assert magic == EXTENDED_REPLY_MAGIC, hex(magic)
        flags, kind, cookie, offset, length = struct.unpack(">HHQQQ", self.recv(28))
        return Reply(
            "chunk", cookie, flags=flags, type=kind, offset=offset, data=self.recv(length)
        )

    def answer(self, read_length: int = 0) -> Answer:
        """Receive everything up to the last reply of one request (none other in flight)."""
        answer = Answer()
        while True:
            reply = self.reply(read_length)
            answer.replies.append(reply)
            if reply.kind == "simple" or reply.flags & 1:
                return answer

    def ask(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        flags: int = 0,
        cookie: int = 1,
        payload: bytes = b"",
    ) -> Answer:
        """Send one request and receive its answer."""
        self.send(self.request_bytes(command, offset, length, flags, cookie, payload))
        return self.answer(length if command == CMD_READ else 0)


def extents(reply: Reply) -> tuple[int, list[tuple[int, int]]]:
    """A block status chunk as (context id, [(length, flags), ...])."""
    compact = reply.type == CHUNK_BLOCK_STATUS
    assert compact or reply.type == CHUNK_BLOCK_STATUS_EXT
    (context,) = struct.unpack_from(">I", reply.data)
    pairs = struct.iter_unpack(*((">II", reply.data[4:]) if compact else (">QQ", reply.data[8:])))
    found = [(int(length), int(flags)) for length, flags in pairs]
    if not compact:
        assert len(found) == struct.unpack_from(">I", reply.data, 4)[0]
    return int(context), found
