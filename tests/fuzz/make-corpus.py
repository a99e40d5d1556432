#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Make the seeds that are binary, or too long to be written by hand.

    make-corpus.py FOLDER

FOLDER/TARGET/ then holds one file a seed. The same seeds come out every time.
"""

import functools
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

Seeds = Iterator[tuple[str, bytes]]

# --- NBD: the parts of a message ---

IHAVEOPT = 0x49484156454F5054
REQUEST_MAGIC = 0x25609513
EXTENDED_REQUEST_MAGIC = 0x21E41C71

FIXED_NEWSTYLE, NO_ZEROES = 1, 2

EXPORT_NAME, ABORT, LIST, PEEK, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META, EXTENDED = range(
    1, 12
)
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = (1 << bit for bit in range(6))

# Exports of tests/fuzz/nbd-client.c, in the order of the numbers that fuzz-nbd-transmission.c takes.
EXPORTS = ["disk", "frozen", "huge", ""]
SIZES = [1049088, 1049088, 9223372035781033472, 0]
ALL_CONTEXTS = [
    "base:allocation",
    "qemu:allocation-depth",
    "qemu:dirty-bitmap:new",
    "qemu:dirty-bitmap:coarse",
    "qemu:dirty-bitmap:old",
]

FLAGS = struct.pack(">I", FIXED_NEWSTYLE | NO_ZEROES)


def text(value: str) -> bytes:
    """A length and a string."""
    raw = value.encode()
    return struct.pack(">I", len(raw)) + raw


def option(number: int, data: bytes = b"", length: int | None = None) -> bytes:
    """An option; `length` may lie."""
    return struct.pack(">QII", IHAVEOPT, number, len(data) if length is None else length) + data


def go(name: str, *infos: int, number: int = GO) -> bytes:
    """GO or INFO."""
    return option(number, text(name) + struct.pack(f">H{len(infos)}H", len(infos), *infos))


def meta(name: str, *queries: str, number: int = SET_META) -> bytes:
    """SET_META_CONTEXT or LIST_META_CONTEXT."""
    return option(
        number, text(name) + struct.pack(">I", len(queries)) + b"".join(map(text, queries))
    )


def request(
    command: int,
    offset: int = 0,
    length: int = 0,
    flags: int = 0,
    cookie: int = 1,
    payload: bytes = b"",
    wide: bool = False,
) -> bytes:
    """A request with a compact header, or with an extended one."""
    layout, magic = (">IHHQQQ", EXTENDED_REQUEST_MAGIC) if wide else (">IHHQQI", REQUEST_MAGIC)
    return struct.pack(layout, magic, flags, command, cookie, offset, length) + payload


extended = functools.partial(request, wide=True)


# --- NBD: negotiation ---


def nbd_negotiation() -> Seeds:
    """Whole sessions of a client, from its flags on."""
    read = request(READ, 0, 512)
    yield "no-flags", struct.pack(">I", 0) + option(EXPORT_NAME, b"disk") + read
    yield "unknown-flags", struct.pack(">I", 0xFFFFFFFF) + go("disk")
    yield "not-fixed", struct.pack(">I", NO_ZEROES) + option(LIST)
    yield "export-name", FLAGS + option(EXPORT_NAME, b"disk") + read
    yield "export-name-empty", FLAGS + option(EXPORT_NAME) + request(DISC)
    yield "export-name-unknown", FLAGS + option(EXPORT_NAME, b"nope") + read
    yield "export-name-zero-byte", FLAGS + option(EXPORT_NAME, b"disk\0") + read
    yield "export-name-too-long", FLAGS + option(EXPORT_NAME, b"x" * 4097)
    yield "export-name-far-too-long", FLAGS + option(EXPORT_NAME, bytes(1 << 20) + b"x")
    yield "list", FLAGS + option(LIST) + option(ABORT)
    yield "list-with-data", FLAGS + option(LIST, b"disk") + option(ABORT, b"why")
    yield "starttls", FLAGS + option(STARTTLS) + go("disk")
    yield "info", FLAGS + go("frozen", 0, 1, 2, 3, 77, number=INFO) + go("disk", 3)
    yield "info-of-all", FLAGS + b"".join(go(name, number=INFO) for name in EXPORTS)
    yield "info-unknown", FLAGS + go("nope", number=INFO) + go("x" * 4096) + go("x" * 4097)
    yield "info-lies", FLAGS + b"".join(
        [
            option(INFO),
            option(GO, b"\0\0"),
            option(GO, struct.pack(">I", 0xFFFFFFFF) + b"disk\0\0"),
            option(GO, struct.pack(">I", 4) + b"disk"),
            option(GO, text("disk") + struct.pack(">HH", 2, 3)),
            option(GO, text("disk") + struct.pack(">HHH", 1, 3, 3)),
            option(GO, text("disk\0") + b"\0\0"),
        ]
    )
    yield "structured", FLAGS + option(STRUCTURED) + option(STRUCTURED) + go("disk") + read
    yield "extended", FLAGS + option(EXTENDED) + option(STRUCTURED) + option(EXTENDED) + go(
        "disk"
    ) + extended(READ, 0, 512)
    yield "structured-then-extended", FLAGS + option(STRUCTURED) + option(EXTENDED) + go(
        "disk"
    ) + extended(FLUSH)
    yield "meta-too-early", FLAGS + meta("disk", "base:allocation") + go("disk")
    structured = FLAGS + option(STRUCTURED)
    status = request(BLOCK_STATUS, 0, 4096)
    yield "meta", structured + meta("disk", *ALL_CONTEXTS) + go("disk") + status
    yield "meta-twice", structured + meta("disk", *ALL_CONTEXTS) + meta("disk", "nope:x") + go(
        "disk"
    ) + status
    yield "meta-overlapping", structured + meta("disk", *(ALL_CONTEXTS * 3)) + go("disk") + status
    yield "meta-of-another", structured + meta("huge", "base:allocation") + go("disk") + status
    yield "meta-then-fails", structured + meta("disk", "base:allocation") + meta("nope") + go(
        "disk"
    ) + status
    namespaces = ["base:", "qemu:", "qemu:dirty-bitmap:", ""]
    yield "meta-list", structured + b"".join(
        meta("disk", query, number=LIST_META) for query in [*namespaces, *ALL_CONTEXTS]
    )
    yield "meta-list-all", structured + meta("disk", number=LIST_META) + meta(
        "disk", *namespaces, number=LIST_META
    )
    yield "meta-thousands", structured + meta("disk", *["qemu:dirty-bitmap:new"] * 3000)
    yield "meta-too-many", structured + meta("disk", *[""] * 8193) + go("disk")
    yield "meta-lies", structured + b"".join(
        [
            option(SET_META, text("disk") + struct.pack(">I", 0xFFFFFFFF)),
            option(SET_META, text("disk") + struct.pack(">II", 1, 0xFFFFFFFF)),
            option(SET_META, text("disk") + struct.pack(">I", 0) + b"x"),
            option(LIST_META, text("disk")),
            meta("disk", "x" * 8000, "base:allocation\0"),
        ]
    )
    yield "unknown-options", FLAGS + option(0) + option(PEEK, b"data") + option(12, b"data") + option(
        0xFFFFFFFF
    )
    yield "length-lies", FLAGS + option(LIST, b"", 1 << 31)
    yield "length-to-be-skipped", FLAGS + option(LIST, b"x" * 100, (1 << 20) + 1)
    yield "wrong-magic", FLAGS + option(LIST) + struct.pack(">QII", IHAVEOPT + 1, LIST, 0)
    yield "hundreds", FLAGS + option(LIST) * 300 + go("disk") + request(DISC)
    yield "nothing", b""


def client_hello(versions: bytes, extensions: bytes = b"") -> bytes:
    """The record with which a client begins TLS, of a pre-shared key."""
    groups = struct.pack(">HHHH", 10, 4, 2, 29)
    offered = struct.pack(">HHB", 43, len(versions) + 1, len(versions)) + versions
    more = groups + offered + extensions
    body = b"\x03\x03" + bytes(range(32)) + b"\0" + struct.pack(">HHHH", 6, 0x1301, 0x00A8, 0xD001)
    body += b"\x01\0" + struct.pack(">H", len(more)) + more
    message = b"\x01" + struct.pack(">I", len(body))[1:] + body
    return b"\x16\x03\x01" + struct.pack(">H", len(message)) + message


def nbd_tls() -> Seeds:
    """Sessions with a server that asks for TLS."""
    begin = FLAGS + option(STARTTLS)
    refused = b"".join(option(number) for number in (LIST, INFO, GO, STRUCTURED, EXTENDED, 77))
    yield "refused", FLAGS + refused + option(ABORT)
    yield "go", FLAGS + go("disk") + meta("disk", "base:allocation")
    yield "export-name", FLAGS + option(EXPORT_NAME, b"disk")
    yield "not-fixed", struct.pack(">I", NO_ZEROES) + option(STARTTLS)
    yield "too-long", FLAGS + option(LIST, bytes((1 << 20) + 1)) + option(ABORT)
    yield "starttls-with-data", FLAGS + option(STARTTLS, b"data") + option(LIST)
    yield "injected", begin + option(LIST) + go("disk")
    yield "nothing", begin
    yield "hello-1.2", begin + client_hello(b"\x03\x03")
    share = struct.pack(">HHHHH", 51, 38, 36, 29, 32) + bytes(range(32))
    modes = struct.pack(">HHBB", 45, 2, 1, 1)
    identity = struct.pack(">HH", 10, 4) + b"user" + bytes(4)
    binder = struct.pack(">HB", 33, 32) + bytes(32)
    key = struct.pack(">HH", 41, len(identity) + len(binder)) + identity + binder
    yield "hello-1.3", begin + client_hello(b"\x03\x04\x03\x03", share + modes)
    yield "hello-wrong-key", begin + client_hello(b"\x03\x04", share + modes + key)
    yield "hello-old", begin + client_hello(b"\x03\x01\x03\x02")
    yield "two-hellos", begin + client_hello(b"\x03\x03") * 2
    yield "long-record", begin + b"\x16\x03\x01\xff\xff" + bytes(70000)
    yield "many-alerts", begin + b"\x15\x03\x03\0\x02\x01\x5a" * 1000
    yield "empty-records", begin + b"\x16\x03\x01\0\0" * 3000


# --- NBD: transmission ---


def edges(size: int) -> Iterator[tuple[int, int]]:
    """Offsets and lengths at which things change."""
    yield 0, 0
    yield size, 0
    yield size, 1
    yield size + 1, 0
    yield 0, 1
    yield 0, min(size, 0xFFFFFFFF)
    yield max(size - 1, 0), 1
    yield max(size - 1, 0), 2
    yield 0, 32 << 20
    yield 0, (32 << 20) + 1
    yield 1, 0xFFFFFFFF
    yield 1 << 63, 1
    yield (1 << 63) - 1, 1
    yield (1 << 64) - 1, 1
    yield (1 << 64) - 1, 0xFFFFFFFF


def many_edges(form: Callable[..., bytes], which: int, flags: int = 0) -> bytes:
    """Every command without a payload at every edge."""
    return b"".join(
        form(command, offset, length, flags, cookie=command)
        for command in (READ, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, FLUSH)
        for offset, length in edges(SIZES[which])
        if not (command == READ and length > 1 << 20)
    )


def choice(form: int, which: int, contexts: bool = True) -> bytes:
    """The first byte of an input: how to negotiate."""
    return bytes([form | which << 2 | (16 if contexts else 0)])


def writes(form: Callable[..., bytes], flags: int = 0) -> bytes:
    """Requests with payloads, some of them refused."""
    return b"".join(
        form(WRITE, offset, length, flags, cookie=offset, payload=b"w" * length)
        for offset, length in [(0, 0), (0, 1), (511, 2), (65536, 512), (1049087, 1), (1049088, 1)]
    )


def status_filter(length: int, *ids: int) -> bytes:
    """The payload that narrows a block status request down."""
    return struct.pack(f">Q{len(ids)}I", length, *ids)


def nbd_transmission() -> Seeds:
    """A byte that says how to negotiate, then requests."""
    for number, name in enumerate(["disk", "frozen", "huge", "empty"]):
        for form, label in enumerate(["simple", "structured"]):
            yield f"edges-{label}-{name}", choice(form, number) + many_edges(request, number)
        yield f"edges-extended-{name}", choice(2, number) + many_edges(extended, number)
        yield f"writes-{name}", choice(1, number) + writes(request)
        yield f"writes-extended-{name}", choice(2, number) + writes(extended, PAYLOAD_LEN)
    for bit in range(16):
        flags = 1 << bit
        yield f"flag-{bit}", choice(1, 0) + b"".join(
            request(command, 0, 512, flags) for command in (READ, TRIM, CACHE, WRITE_ZEROES)
        ) + request(BLOCK_STATUS, 0, 1 << 20, flags) + request(FLUSH, 0, 0, flags) + request(
            WRITE, 0, 4, flags, payload=b"data"
        )
        yield f"flag-extended-{bit}", choice(2, 0) + b"".join(
            extended(command, 0, 16, flags, payload=bytes(16) if bit == 5 else b"")
            for command in range(9)
            if command not in (WRITE, DISC)
        )
    yield "status-filters", choice(2, 0) + b"".join(
        extended(BLOCK_STATUS, 0, len(payload), PAYLOAD_LEN, payload=payload)
        for payload in [
            status_filter(1 << 20, 0),
            status_filter(1 << 20, 4, 3, 2, 1, 0),
            status_filter(1 << 20, 0, 0),
            status_filter(1 << 20, 5),
            status_filter(0, 0),
            status_filter((1 << 64) - 1, 0),
            status_filter(1 << 63, 2),
            status_filter(4096),
            status_filter(4096, 0, 1, 2, 3, 4, 0),
            b"",
            b"\0" * 13,
        ]
    )
    yield "status-huge", choice(2, 2) + b"".join(
        extended(BLOCK_STATUS, offset, length)
        for offset, length in [(0, 1 << 62), (1 << 62, 1 << 32), (1, SIZES[2] - 1), (0, SIZES[2])]
    )
    yield "status-not-selected", choice(1, 0, False) + request(BLOCK_STATUS, 0, 4096)
    yield "trim-huge", choice(2, 2) + extended(TRIM, 0, 1 << 40) + extended(
        WRITE_ZEROES, 1 << 50, 1 << 40, FAST_ZERO
    )
    for name, end in [("", b""), ("-goodbye", extended(DISC)), ("-lost", request(READ))]:
        yield f"trim-for-ever{name}", choice(2, 2) + extended(TRIM, 0, 1 << 62) + end
    yield "read-largest", choice(1, 2) + request(READ, 0, 32 << 20) + request(READ, 5, 32 << 20, DF)
    yield "write-too-large", choice(1, 2) + request(WRITE, 0, (32 << 20) + 1) + request(FLUSH)
    yield "write-cut", choice(0, 0) + request(WRITE, 0, 4096, payload=b"cut")
    yield "write-refused-and-cut", choice(1, 1) + request(WRITE, 0, 4096, payload=b"cut")
    yield "unknown-commands", choice(1, 0) + b"".join(
        request(command) for command in (8, 9, 255, 32768, 65535)
    )
    yield "wrong-magic", choice(1, 0) + request(FLUSH) + extended(FLUSH) + request(FLUSH)
    yield "disconnect", choice(1, 0) + request(READ, 0, 65536) + request(DISC) + request(READ)
    yield "thousands", choice(1, 0) + b"".join(
        request(READ, n * 512 % 1048576, 512, cookie=n) for n in range(1200)
    )
    yield "turns", choice(0, 0) + request(FLUSH) * 500
    yield "same-cookie", choice(1, 0) + request(READ, 0, 100000, cookie=7) * 40
    yield "mixed", choice(1, 0) + b"".join(
        [
            request(WRITE, 4096, 8, payload=b"mixed up"),
            request(READ, 0, 65536),
            request(BLOCK_STATUS, 0, 1048576),
            request(WRITE_ZEROES, 65536, 65536, NO_HOLE | FUA),
            request(TRIM, 0, 1049088),
            request(BLOCK_STATUS, 0, 1048576, REQ_ONE),
            request(FLUSH),
        ]
    )


# --- text: what is long ---


def nested(depth: int) -> str:
    """raw over raw over raw."""
    return "{'driver':'raw','file':" * depth + "{'driver':'null-co'}" + "}" * depth


def blockdev_add(arguments: str) -> str:
    """The command with these arguments."""
    return "{'execute':'blockdev-add','arguments':" + arguments + "}"


NEGOTIATE = "{'execute':'qmp_capabilities'}"


def transaction(actions: str) -> str:
    """The command with these actions."""
    return "{'execute':'transaction','arguments':{'actions':[" + actions + "]}}"


def bitmap_action(kind: str, name: str) -> str:
    """An action on a bitmap of the node `disk`."""
    data = f"{{'node':'disk','name':'{name}'}}"
    return f"{{'type':'block-dirty-bitmap-{kind}','data':{data}}}"


def qmp() -> Seeds:
    """Sessions with many or large messages."""
    disk = blockdev_add("{'driver':'null-co','node-name':'disk','size':1048576}")
    named = "{'driver':'raw','node-name':'top','file':" + nested(40) + "}"
    adds = ",".join(bitmap_action("add", f"b{n}") for n in range(300))
    ends = ",".join(bitmap_action("remove", f"b{n}") for n in range(300))
    yield "deep-node", (NEGOTIATE + blockdev_add(named)).encode()
    yield "thousands-of-actions", (
        NEGOTIATE + disk + transaction(adds) + transaction(f"{ends},{{'type':'abort','data':{{}}}}")
    ).encode()
    yield "many-messages", (NEGOTIATE + "{'execute':'query-block'}" * 500).encode()
    yield "long-name", (
        NEGOTIATE + blockdev_add("{'driver':'null-co','node-name':'" + "n" * 20000 + "'}")
    ).encode()


def qmp_framing() -> Seeds:
    """Streams at the limits of a message."""
    for depth in (1023, 1024, 1025, 3000):
        yield f"arrays-{depth}", b"[" * depth + b"]" * depth
        yield f"objects-{depth}", b"{'a':" * depth + b"1" + b"}" * depth
    yield "many-tokens", b"[" + b"0," * 20000 + b"0]{}"
    yield "long-string", b'"' + b"s" * 60000 + b'"'
    yield "long-stray", b"$" + b"x" * 2000 + b"\n" + b"&" * 600 + b"{}"
    yield "every-byte", bytes(range(256))
    yield "every-byte-in-strings", b"".join(b'"' + bytes([n]) + b'"' for n in range(256))
    yield "bad-utf8", b'"\xc0\x80" "\xed\xa0\x80" "\xf4\x90\x80\x80" "\xe2\x82" "\xff'


def image_name() -> Seeds:
    """Bytes that are no UTF-8, and options with many steps."""
    for name, bytes_ in ("latin", b"gr\xfcn.img"), ("none", b"\xff\xfe"):
        yield name, bytes_
        yield f"json-{name}", b'json:{"driver":"raw","file.filename":"' + bytes_ + b'"}'
    for steps in (64, 1000):
        yield f"dots-{steps}", f'json:{{"{"." * steps}":1}}'.encode()
        yield f"steps-{steps}", f'json:{{"{"file." * steps}driver":"raw"}}'.encode()
        yield f"braces-{steps}", ("json:" + '{"file":' * steps + "1" + "}" * steps).encode()
    yield "list", ("json:{" + ",".join(f'"list.{n}":1' for n in range(2000)) + "}").encode()


def keyval() -> Seeds:
    """Thousands of options, and keys with many steps."""
    pairs = ",".join(f"k{n}.x={n}" for n in range(2000))
    yield "thousands", f"driver=raw,{pairs}".encode()
    yield "long-list", ",".join(f"list.{n}=x" for n in range(5000)).encode()
    yield "list-backwards", ",".join(f"list.{n}=x" for n in range(500, -1, -1)).encode()
    yield "deep", (".".join(["file"] * 300) + ".driver=null-co").encode()
    yield "deep-raw", ",".join(
        "file." * n + "driver=" + ("raw" if n < 60 else "null-co") for n in range(61)
    ).encode()
    for length in (127, 128, 1000):
        yield f"step-{length}", f"{'s' * length}=1,a.{'s' * length}.b=2".encode()
    for steps in (1024, 1025, 30000):
        yield f"steps-{steps}", (".".join(["a"] * steps) + "=1").encode()
    yield "long-value", ("driver=file,filename=" + "f,," * 5000).encode()


def qapi() -> Seeds:
    """Large trees."""
    options = ",".join([f"{{'driver':'raw','node-name':'n{n}','file':'m'}}" for n in range(300)])
    actions = ",".join(bitmap_action("clear", "b") for _ in range(300))
    yield "deep-node", nested(300).encode()
    yield "deeper-than-parsed", nested(1100).encode()
    yield "reopen-many", f"{{'options':[{options}]}}".encode()
    yield "many-actions", f"{{'actions':[{actions}]}}".encode()


# --- qcow2: the bitmap directory ---


def bitmap_entry(name: bytes, offset: int = 5 << 16, entries: int = 1, flags: int = 2,
                 granularity: int = 16, kind: int = 1, extra: bytes = b"") -> bytes:
    """An entry of a bitmap directory."""
    head = struct.pack(">QIIBBHI", offset, entries, flags, kind, granularity, len(name), len(extra))
    body = head + extra + name
    return body + bytes(-len(body) % 8)


def bitmap_directory(*entries: bytes, said: int | None = None, number: int | None = None,
                     rest: bytes = b"") -> bytes:
    """The header's numbers (64 KiB clusters, a disk of 64 MiB, a file of 16 MiB) and a directory."""
    body = b"".join(entries)
    return struct.pack(
        ">QIBBBBB7x", len(body) if said is None else said,
        len(entries) if number is None else number, 16 - 9, 26, 0, 24, 0,
    ) + body + rest


def qcow2_bitmaps() -> Seeds:
    """Directories, sound and damaged, with the numbers of the header before them."""
    three = [bitmap_entry(b"monday"), bitmap_entry(b"tuesday8", 6 << 16, flags=0),
             bitmap_entry(b"a name of some length", 7 << 16, flags=1)]
    whole = b"".join(three)
    yield "three", bitmap_directory(*three)
    yield "in-a-cluster", bitmap_directory(*three, rest=bytes(400))
    yield "fewer-said", bitmap_directory(*three, number=2)
    yield "more-said", bitmap_directory(*three, number=9)
    yield "shorter-said", bitmap_directory(*three, said=40, rest=bytes(64))
    yield "longer-said", bitmap_directory(*three, said=1 << 40)
    yield "cut", bitmap_directory(whole[:70], said=70, number=3)
    yield "twins", bitmap_directory(three[0], three[0], three[1])
    yield "nameless", bitmap_directory(bitmap_entry(b""), *three)
    yield "longest-name", bitmap_directory(bitmap_entry(b"x" * 1023), three[1])
    yield "too-long-name", bitmap_directory(bitmap_entry(b"x" * 1024), three[1])
    yield "extra", bitmap_directory(bitmap_entry(b"e", extra=b"12345"), three[1])
    yield "extra-known", bitmap_directory(bitmap_entry(b"e", extra=b"12345", flags=4), three[1])
    yield "not-utf8", bitmap_directory(bitmap_entry(b"\xff\xfe"), three[1])
    yield "fine", bitmap_directory(bitmap_entry(b"fine", entries=1, granularity=9))
    yield "many", bitmap_directory(*(bitmap_entry(b"b%d" % n, (n % 250 + 1) << 16)
                                     for n in range(300)))
    for at in range(0, 24):
        broken = bytearray(whole)
        broken[32 + at] ^= 0x55
        yield f"broken-{at}", bitmap_directory(bytes(broken), number=3)


# --- qcow2: whole images ---


def qcow2_extension(kind: int, data: bytes) -> bytes:
    """An extension of a header."""
    return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)


def qcow2_snapshot(offset: int, entries: int, name: bytes, extra: bytes) -> bytes:
    """An entry of a snapshot table."""
    head = struct.pack(">QIHHIIQII", offset, entries, 1, len(name), 1, 2, 3, 0, len(extra))
    body = head + extra + b"1" + name
    return body + bytes(-len(body) % 8)


def qcow2_image(bits: int = 9, version: int = 3, size: int = 32768, features: int = 0,
                autoclear: int = 0, compression: int = 0, order: int = 4, extensions: bytes = b"",
                backing: bytes = b"", l2: bytes = b"", more: tuple[bytes, ...] = (),
                snapshots: int = 0) -> bytes:
    """Clusters: header, refcount table, refcount block, L1, L2, data, then `more`, of which the
    first is the snapshot table if there are snapshots."""
    cluster = 1 << bits
    extensions += qcow2_extension(0, b"")
    name_at = (112 if version == 3 else 72) + len(extensions)
    header = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", version, name_at if backing else 0, len(backing), bits, size,
        0, 1, 3 * cluster, cluster, 1, snapshots, 6 * cluster if snapshots else 0,
    )
    if version == 3:
        header += struct.pack(">QQQIIB7x", features, 0, autoclear, order, 112, compression)
    used = 6 + len(more)
    counts = sum(1 << (i << order) for i in range(used)).to_bytes(cluster, "little")
    if order > 3:
        counts = b"".join((1).to_bytes((1 << order) // 8, "big") for _ in range(used))
    copied = 1 << 63
    parts = [
        header + extensions + backing, struct.pack(">Q", 2 * cluster), counts,
        struct.pack(">Q", copied | 4 * cluster), l2 or struct.pack(">QQ", copied | 5 * cluster, 1),
        b"data" * (cluster // 4), *more,
    ]
    return b"".join(part + bytes(cluster - len(part)) for part in parts)


def qcow2() -> Seeds:
    """Images of each kind, some of them damaged."""
    names = struct.pack(">BB46s", 0, 5, b"something new")
    l1 = struct.pack(">Q", 4 * 512)
    packed = struct.pack(">Q", 1 << 62 | 5 * 512)
    one = qcow2_snapshot(7 * 512, 1, b"one", struct.pack(">QQQ", 0, 32768, 0))
    old = qcow2_snapshot(7 * 512, 1, b"old", b"")
    bitmaps = struct.pack(">IIQQ", 1, 0, 32, 6 * 512)
    entry = bitmap_entry(b"b", 7 * 512, 1, flags=2, granularity=9)
    sound = qcow2_image()
    yield "sound", sound
    yield "version-2", qcow2_image(version=2)
    yield "large-clusters", qcow2_image(12)
    yield "largest-clusters", qcow2_image(21)[: 2 << 21][: 60000]
    yield "narrow-refcounts", qcow2_image(order=0)
    yield "wide-refcounts", qcow2_image(order=6)
    yield "extended-l2", qcow2_image(14, features=16, l2=struct.pack(">QQ", 1 << 63 | 5 << 14, 15))
    yield "compressed", qcow2_image(l2=packed)
    yield "compressed-zstd", qcow2_image(l2=packed, features=8, compression=1)
    yield "backing", qcow2_image(backing=b"base", extensions=qcow2_extension(0xE2792ACA, b"raw"))
    yield "data-file", qcow2_image(features=4, extensions=qcow2_extension(0x44415441, b"d"))
    yield "data-file-raw", qcow2_image(features=4, autoclear=2)
    yield "snapshot", qcow2_image(snapshots=1, more=(one, l1))
    yield "snapshots", qcow2_image(snapshots=2, version=2, more=(old + one, l1))
    far = qcow2_snapshot((1 << 63) - 512, 0xFFFFFFFF, b"far", b"")
    yield "snapshot-far", qcow2_image(snapshots=3, more=(far + one + far, l1))
    yield "l1-far", sound[:40] + struct.pack(">Q", (1 << 63) - 512) + sound[48:]
    yield "bitmap", qcow2_image(autoclear=1, extensions=qcow2_extension(0x23852875, bitmaps),
                                more=(entry, struct.pack(">Q", 1)))
    yield "dirty", qcow2_image(features=1)
    yield "corrupt", qcow2_image(features=2)
    yield "unknown", qcow2_image(features=32, extensions=qcow2_extension(0x6803F857, names))
    yield "autoclear", qcow2_image(autoclear=1 << 40)
    yield "huge", qcow2_image(21, size=1 << 50)[: 60000]
    for what, value in (("self", 4), ("header", 0), ("far", 1 << 40), ("refblock", 2)):
        yield f"l2-to-{what}", qcow2_image(l2=struct.pack(">Q", 1 << 63 | value * 512))
    for at in (8, 20, 24, 36, 40, 48, 56, 60, 64, 96, 100):
        broken = bytearray(sound)
        broken[at : at + 4] = b"\xff\xff\xff\xff"
        yield f"broken-{at}", bytes(broken)


def size() -> Seeds:
    """Numbers at the limits, with each suffix."""
    for power in (0, 10, 31, 32, 53, 62, 63, 64, 65, 128):
        for number in (2**power - 1, 2**power, 2**power + 1):
            yield f"decimal-{number}", f"{number}".encode()
            yield f"hexadecimal-{number}", f"{number:#x}".encode()
    for shift, suffix in enumerate("bkmgtpe"):
        limit = 1 << (64 - 10 * shift)
        yield f"below-{suffix}", f"{limit - 1}{suffix}".encode()
        yield f"beyond-{suffix}", f"{limit}{suffix.upper()}".encode()
        yield f"fraction-{suffix}", f"{limit - 1}.{'9' * 30}{suffix}".encode()


TARGETS: dict[str, Callable[[], Seeds]] = {
    "image-name": image_name,
    "keyval": keyval,
    "nbd-negotiation": nbd_negotiation,
    "nbd-tls": nbd_tls,
    "nbd-transmission": nbd_transmission,
    "qapi": qapi,
    "qcow2": qcow2,
    "qcow2-bitmaps": qcow2_bitmaps,
    "qmp": qmp,
    "qmp-framing": qmp_framing,
    "size": size,
}


def main() -> int:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    root = Path(sys.argv[1])
    if root.exists():
        shutil.rmtree(root)
    for target, seeds in TARGETS.items():
        folder = root / target
        folder.mkdir(parents=True)
        for name, data in seeds():
            (folder / name).write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
