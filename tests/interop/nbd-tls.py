#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""NBD over TLS with other people's clients: who is let in, who is not, and that nothing is lost.

    nbd-tls.py DAEMON

Certificates and keys are made at the start. Clients that are let in run with the export on the main
loop and on an I/O thread. Clients that are not let in are of every sort, and after each of them a
good one is served by the same server. Prints TAP.
"""

from __future__ import annotations

import filecmp
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator

from nbd_daemon import Daemon, QmpError, Skip, run_tests, running
from nbd_wire import OPT_STARTTLS, REP_ACK, Wire
from tls_files import AUTHORITY, CLIENT, LONG_AGO, SERVER, Pki, make_keys

QEMU = "qemu-storage-daemon"
MIB = 1 << 20
SIZE = 16 * MIB

DAEMON = ""


class Files:
    """The credentials of all tests."""

    def __init__(self, folder: Path) -> None:
        self.pki = pki = Pki(folder / "pki")
        pki.make("ca", "Authority", AUTHORITY)
        pki.make("other", "Another authority", AUTHORITY)
        pki.make("server", "localhost", SERVER, "ca")
        pki.make("alice", "alice", CLIENT, "ca")
        pki.make("anne", "anne", 'organization = "Merino"\n' + CLIENT, "ca")
        pki.make("late", "late", CLIENT, "ca", LONG_AGO)
        pki.make("lost", "lost", CLIENT, "ca")
        pki.make("stranger", "stranger", CLIENT, "other")
        self.server = pki.credentials("for-server", "ca", server="server")
        shutil.copy(pki.revoke("lost", "ca"), self.server / "ca-crl.pem")
        self.alice = pki.credentials("for-alice", "ca", client="alice")
        self.anne = pki.credentials("for-anne", "ca", client="anne")
        self.late = pki.credentials("for-late", "ca", client="late")
        self.lost = pki.credentials("for-lost", "ca", client="lost")
        self.stranger = pki.credentials("for-stranger", "ca", client="stranger")
        self.nobody = pki.credentials("for-nobody", "ca")
        self.keys = make_keys(folder / "keys", "alice", "bob")
        self.wrong_keys = make_keys(folder / "wrong-keys", "alice", "mallory")


FILES: Files


class Setup:
    """A daemon whose server talks TLS only, with one disk, exported as 'disk'."""

    def __init__(self, daemon: Daemon, creds: dict[str, Any] | None, iothread: bool = False,
                 **options: Any) -> None:
        self.daemon = daemon
        self.image = daemon.folder / "disk.raw"
        self.image.write_bytes(random.Random(1).randbytes(SIZE))
        daemon.command("object-add", qom_type="iothread", id="io0")
        daemon.command("blockdev-add", driver="file", node_name="disk", filename=str(self.image))
        if creds is not None:
            daemon.command("object-add", id="tls0", endpoint="server", **creds)
            options["tls_creds"] = "tls0"
        daemon.command("nbd-server-start",
                       addr={"type": "unix", "data": {"path": daemon.sock}}, **options)
        thread = {"iothread": "io0"} if iothread else {}
        daemon.command("block-export-add", type="nbd", id="disk", node_name="disk",
                       writable=True, **thread)

    def x509(self, folder: Path) -> str:
        """The address for a client with certificates."""
        return f"nbds+unix:///disk?socket={self.daemon.sock}&tls-certificates={folder}"

    def psk(self, folder: Path, user: str = "alice") -> str:
        """The address for a client with a pre-shared key."""
        keys = folder / "keys.psk"
        return f"nbds+unix://{user}@/disk?socket={self.daemon.sock}&tls-psk-file={keys}"

    def plain(self) -> str:
        """The address for a client without TLS."""
        return f"nbd+unix:///disk?socket={self.daemon.sock}"

    def image_opts(self) -> str:
        """The disk as qemu-img has it, with the object c."""
        return (f"driver=nbd,export=disk,server.type=unix,server.path={self.daemon.sock},"
                "tls-creds=c")


@contextmanager
def serving(creds: dict[str, Any] | None, iothread: bool = False,
            **options: Any) -> Iterator[Setup]:
    """A daemon for as long as the block runs; it may complain of clients."""
    with running(DAEMON, [], quiet=False) as daemon:
        yield Setup(daemon, creds, iothread, **options)


def x509_server(**more: Any) -> dict[str, Any]:
    """A server with certificates."""
    return {"qom_type": "tls-creds-x509", "dir": str(FILES.server), **more}


def psk_server(**more: Any) -> dict[str, Any]:
    """A server with pre-shared keys."""
    return {"qom_type": "tls-creds-psk", "dir": str(FILES.keys), **more}


def run(*command: str, fails: bool = False) -> str:
    """Run a client and return its output."""
    if not shutil.which(command[0]):
        raise Skip(f"{command[0]} is not installed")
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=120, check=False)
    assert (done.returncode != 0) == fails, (command, done.returncode, done.stdout)
    return done.stdout


# --- clients that are let in ---


def use_libnbd(setup: Setup, uri: str) -> None:
    """Everything that libnbd's programs do."""
    told = json.loads(run("nbdinfo", "--json", uri))
    assert told["TLS"] and told["exports"][0]["export-size"] == SIZE, told
    out = setup.daemon.folder / "out.raw"
    run("nbdcopy", "--requests=64", "--connections=4", uri, str(out))
    assert filecmp.cmp(setup.image, out, shallow=False)
    new = setup.daemon.folder / "new.raw"
    new.write_bytes(random.Random(2).randbytes(SIZE))
    run("nbdcopy", "--flush", str(new), uri)
    assert filecmp.cmp(setup.image, new, shallow=False)


def use_module(setup: Setup, uri: str) -> None:
    """libnbd's module: many requests of all sizes in flight, in both directions."""
    try:
        import nbd
    except ImportError as error:
        raise Skip("python3-libnbd is not installed") from error
    handle = nbd.NBD()
    handle.set_uri_allow_local_file(True)
    handle.connect_uri(uri)
    assert handle.get_tls_negotiated()
    content = bytearray(setup.image.read_bytes())
    generator = random.Random(3)
    writes = []
    for i in range(60):
        data = generator.randbytes(generator.choice((1, 512, 16384, 16385, 300000)))
        offset = i * SIZE // 64
        data = data[:SIZE // 64]
        content[offset:offset + len(data)] = data
        writes.append(handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), offset))
    while handle.aio_in_flight():
        handle.poll(-1)
    assert all(handle.aio_command_completed(cookie) for cookie in writes)
    reads = []
    for i in range(40):
        offset, length = i * SIZE // 40 - i, generator.choice((1, 4096, 65537, SIZE // 40))
        buffer = nbd.Buffer(length)
        reads.append((handle.aio_pread(buffer, offset), buffer, offset))
    while handle.aio_in_flight():
        handle.poll(-1)
    for cookie, buffer, offset in reads:
        assert handle.aio_command_completed(cookie)
        got = buffer.to_bytearray()
        assert got == content[offset:offset + len(got)], offset
    handle.shutdown()


def use_qemu_img(setup: Setup, creds: str, more: str = "") -> None:
    """QEMU's client, in both versions of the protocol."""
    for version in ("1.2", "1.3"):
        out = setup.daemon.folder / "out.raw"
        out.unlink(missing_ok=True)
        objects = ["--object", f"{creds},id=c,endpoint=client,"
                               f"priority=NORMAL:-VERS-ALL:+VERS-TLS{version}"]
        run("qemu-img", "convert", *objects, "-m", "8", "-W", "--image-opts", "-O", "raw",
            setup.image_opts() + more, str(out))
        assert filecmp.cmp(setup.image, out, shallow=False)
        run("qemu-img", "compare", *objects, "--image-opts", setup.image_opts() + more,
            f"driver=file,filename={setup.image}")


def test_x509(iothread: bool) -> None:
    """Clients with certificates."""
    with serving(x509_server(), iothread) as setup:
        use_libnbd(setup, setup.x509(FILES.alice))
        use_module(setup, setup.x509(FILES.alice))
        use_qemu_img(setup, f"tls-creds-x509,dir={FILES.alice}", ",tls-hostname=localhost")


def test_psk(iothread: bool) -> None:
    """Clients with pre-shared keys."""
    with serving(psk_server(), iothread) as setup:
        use_libnbd(setup, setup.psk(FILES.keys))
        use_module(setup, setup.psk(FILES.keys, "bob"))
        use_qemu_img(setup, f"tls-creds-psk,dir={FILES.keys},username=alice")


def test_no_verification() -> None:
    """With verify-peer=off certificates are not asked for."""
    with serving(x509_server(verify_peer=False)) as setup:
        use_libnbd(setup, setup.x509(FILES.nobody))
        use_libnbd(setup, setup.x509(FILES.stranger))


# --- clients that are not ---


def refused_x509() -> None:
    """Every bad certificate, and none at all."""
    with serving(x509_server()) as setup:
        for folder in (FILES.nobody, FILES.stranger, FILES.late, FILES.lost):
            run("nbdinfo", setup.x509(folder), fails=True)
            run("nbdinfo", "--size", setup.x509(FILES.alice))
        run("nbdinfo", setup.psk(FILES.keys), fails=True)
        run("nbdinfo", "--size", setup.x509(FILES.alice))


def refused_psk() -> None:
    """A wrong key, and a user whom nobody knows."""
    with serving(psk_server()) as setup:
        for user in ("alice", "mallory"):
            run("nbdinfo", setup.psk(FILES.wrong_keys, user), fails=True)
            run("nbdinfo", "--size", setup.psk(FILES.keys))
        run("nbdinfo", setup.x509(FILES.alice), fails=True)
        run("nbdinfo", "--size", setup.psk(FILES.keys))


def refused_plain() -> None:
    """Clients without TLS learn that they need it, and nothing else."""
    with serving(x509_server()) as setup:
        said = run("qemu-img", "info", setup.plain(), fails=True)
        assert "Option 0x7 not permitted before TLS" in said, said
        run("nbdinfo", setup.plain(), fails=True)
        run("nbdinfo", "--list", setup.plain(), fails=True)
        run("nbdinfo", "--size", setup.x509(FILES.alice))


def refused_tls() -> None:
    """A client that insists on TLS and a server that has none."""
    with serving(None) as setup:
        run("nbdinfo", setup.x509(FILES.alice), fails=True)
        said = run("qemu-img", "info", "--object",
                   f"tls-creds-x509,id=c,endpoint=client,dir={FILES.alice}",
                   "--image-opts", setup.image_opts() + ",tls-hostname=localhost", fails=True)
        assert "TLS not configured" in said, said
        run("nbdinfo", "--size", setup.plain())


def new_keys() -> None:
    """Users may be added while the server runs."""
    with serving(psk_server()) as setup:
        keys = FILES.keys / "keys.psk"
        before = keys.read_text()
        run("nbdinfo", setup.psk(FILES.wrong_keys, "mallory"), fails=True)
        with open(keys, "a", encoding="utf-8") as file:
            file.write((FILES.wrong_keys / "keys.psk").read_text().splitlines()[1] + "\n")
        run("nbdinfo", setup.psk(FILES.wrong_keys, "mallory"))
        keys.write_text(before)


# --- objects ---


def refused(daemon: Daemon, command: str, /, **arguments: Any) -> str:
    """What a command is refused with."""
    try:
        daemon.command(command, **arguments)
    except QmpError as error:
        return str(error)
    raise AssertionError(f"{command} was not refused")


def object_in_use() -> None:
    """Objects that a server uses are not deleted under it."""
    with running(DAEMON, []) as daemon:
        daemon.command("object-add", qom_type="authz-simple", id="authz0", identity="CN=alice")
        setup = Setup(daemon, x509_server(), tls_authz="authz0")
        for name in ("tls0", "authz0"):
            said = refused(daemon, "object-del", id=name)
            assert said == f"object '{name}' is in use, can not be deleted", said
        setup.daemon.command("nbd-server-stop")
        setup.daemon.command("object-del", id="tls0")
        setup.daemon.command("object-del", id="authz0")


def wrong_objects() -> None:
    """Ids of no object, and of objects that are something else."""
    with running(DAEMON, []) as daemon:
        address = {"type": "unix", "data": {"path": daemon.sock}}
        start = partial(refused, daemon, "nbd-server-start", addr=address)
        daemon.command("object-add", qom_type="iothread", id="io0")
        daemon.command("object-add", id="x", endpoint="server", **x509_server())
        daemon.command("object-add", id="c", qom_type="tls-creds-x509", dir=str(FILES.alice))
        assert start(tls_creds="none") == "No TLS credentials with id 'none'"
        assert start(tls_creds="io0") == "Object with id 'io0' is not TLS credentials"
        assert start(tls_creds="c") == "Expected TLS credentials for a server endpoint"
        assert start(tls_authz="none") == "'tls-authz' needs 'tls-creds'"
        said = start(tls_creds="x", tls_authz="none")
        assert said == "No authorization object with id 'none'", said
        said = start(tls_creds="x", tls_authz="x")
        assert said == "Object with id 'x' is not for authorization", said
        said = refused(daemon, "object-add", qom_type="authz-list", id="x")
        assert said.startswith("attempt to add duplicate property 'x'"), said
        daemon.command("object-del", id="x")


# --- authorization ---


def with_authz(creds: dict[str, Any], rules: dict[str, Any],
               expected: list[tuple[Callable[[Setup], str], bool]]) -> None:
    """Clients that the object lets in, or not, in any order."""
    with running(DAEMON, [], quiet=False) as daemon:
        daemon.command("object-add", id="authz0", **rules)
        setup = Setup(daemon, creds, tls_authz="authz0")
        for uri, admitted in expected * 2:
            run("nbdinfo", "--size", uri(setup), fails=not admitted)


def authz_x509() -> None:
    """By the distinguished name."""
    alice = partial(Setup.x509, folder=FILES.alice)
    anne = partial(Setup.x509, folder=FILES.anne)
    stranger = partial(Setup.x509, folder=FILES.stranger)
    rules = [{"match": "*,CN=anne", "policy": "deny", "format": "glob"},
             {"match": "O=Merino,*", "policy": "allow", "format": "glob"}]
    for identity, who in (("CN=alice", (True, False)), ("O=Merino,CN=anne", (False, True)),
                          ("alice", (False, False))):
        with_authz(x509_server(), {"qom_type": "authz-simple", "identity": identity},
                   [(alice, who[0]), (anne, who[1]), (stranger, False)])
    with_authz(x509_server(), {"qom_type": "authz-list", "rules": rules, "policy": "allow"},
               [(alice, True), (anne, False), (stranger, False)])
    with_authz(x509_server(), {"qom_type": "authz-list", "rules": rules[1:]},
               [(alice, False), (anne, True), (stranger, False)])


def authz_without_identity() -> None:
    """Who has not shown a certificate is nobody, whatever the rules."""
    with_authz(x509_server(verify_peer=False), {"qom_type": "authz-list", "policy": "allow"},
               [(partial(Setup.x509, folder=FILES.nobody), False)])


def authz_psk() -> None:
    """By the user's name."""
    with_authz(psk_server(), {"qom_type": "authz-simple", "identity": "bob"},
               [(partial(Setup.psk, folder=FILES.keys, user="alice"), False),
                (partial(Setup.psk, folder=FILES.keys, user="bob"), True)])


# --- hostile clients ---


def starttls(sock: str) -> Wire:
    """A client that is about to begin TLS."""
    wire = Wire(sock)
    wire.greet()
    answer = wire.option(OPT_STARTTLS)
    assert answer == [(REP_ACK, b"")], answer
    return wire


def hostile(iothread: bool) -> None:
    """Many that stall, send noise or hang up, in the handshake; a good one meanwhile and after."""
    generator = random.Random(4)
    with serving(x509_server(), iothread, max_connections=200) as setup:
        uri = setup.x509(FILES.alice)
        stalled = [starttls(setup.daemon.sock) for _ in range(60)]
        for wire in stalled[::2]:
            wire.send(b"\x16\x03\x01\x02\x00\x01\x00")
        for length in (1, 5, 100, 5000, 70000):
            noisy = starttls(setup.daemon.sock)
            with suppress(ConnectionError):  # the server need not listen to the end
                noisy.send(generator.randbytes(length))
            noisy.close()
        use_libnbd(setup, uri)
        for wire in stalled:
            wire.close()
        use_libnbd(setup, uri)


def nobody_listens() -> None:
    """Clients are turned away also while nobody reads what is said of them."""
    with serving(psk_server()) as setup:
        with open(f"/proc/{setup.daemon.process.pid}/fd/2", "wb", 0, opener=lambda path, flags:
                  os.open(path, flags | os.O_NONBLOCK)) as errors:
            while errors.write(b" " * 4096):
                pass
        for _ in range(3):
            with starttls(setup.daemon.sock) as wire:
                wire.send(b"noise")
        use_libnbd(setup, setup.psk(FILES.keys))
        setup.daemon.command("query-block-exports")


def stalled_are_turned_away() -> None:
    """When their time is over; those who wait for their places are served then."""
    with serving(psk_server(), max_connections=4, handshake_max_seconds=1) as setup:
        stalled = [starttls(setup.daemon.sock) for _ in range(4)]
        run("nbdinfo", "--size", setup.psk(FILES.keys))
        for wire in stalled:
            assert wire.at_end()


# --- beside QEMU ---


def broken_folders(folder: Path) -> Iterator[Path]:
    """Credentials of a server that lack something, or hold something that is no use."""
    for name in ("ca-cert.pem", "server-cert.pem", "server-key.pem", "ca-crl.pem",
                 "dh-params.pem"):
        for garbage in (False, True):
            broken = folder / f"{name}-{garbage}"
            shutil.copytree(FILES.server, broken)
            (broken / name).unlink(missing_ok=True)
            if garbage:
                (broken / name).write_text("garbage\n")
            yield broken
    pki = FILES.pki
    pki.make("old-server", "localhost", SERVER, "ca", LONG_AGO)
    pki.make("ca-server", "localhost", "ca\n" + SERVER, "ca")
    pki.make("old-ca", "Authority", AUTHORITY, None, LONG_AGO)
    pki.make("no-signer", "Authority", "ca\nsigning_key\n")
    for authority, server in (("other", "server"), ("server", "server"), ("old-ca", "server"),
                              ("no-signer", "server"), ("ca", "old-server"),
                              ("ca", "ca-server"), ("ca", "alice")):
        yield pki.credentials(f"{authority}-{server}", authority, server=server)


def beside_qemu() -> None:
    """Objects are refused in QEMU's words."""
    if not shutil.which(QEMU):
        raise Skip(f"{QEMU} is not installed")
    with (tempfile.TemporaryDirectory() as folder, running(DAEMON, []) as ours,
          running(QEMU, [], quiet=False) as theirs):
        asked: list[dict[str, Any]] = [
            {"qom-type": "tls-creds-x509", "dir": str(broken), "endpoint": "server",
             "sanity-check": check}
            for broken in broken_folders(Path(folder)) for check in (True, False)]
        for kind, keys in (("tls-creds-x509", FILES.alice), ("tls-creds-psk", FILES.keys)):
            variants: list[dict[str, Any]] = [
                {}, {"dir": "nowhere"}, {"dir": str(keys)},
                {"dir": str(keys), "passwordid": "none"}, {"dir": str(keys), "username": "alice"},
                {"dir": str(keys), "username": "carol"}, {"dir": str(keys), "verify-peer": "yes"}]
            asked += [{"qom-type": kind, "endpoint": endpoint, **more}
                      for endpoint in ("server", "client", "both") for more in variants]
        asked += [{"qom-type": "authz-simple"}, {"qom-type": "authz-simple", "identity": 1},
                  {"qom-type": "authz-list", "rules": [{"match": "x"}]},
                  {"qom-type": "authz-list", "rules": [{"match": "x", "policy": "no"}]},
                  {"qom-type": "authz-list", "policy": "allow", "rules": []}]
        for arguments in asked:
            replies = []
            for daemon in (ours, theirs):
                reply = daemon.request("object-add", {"id": "o", **arguments})
                if "return" in reply:
                    daemon.command("object-del", id="o")
                replies.append(reply)
            assert replies[0] == replies[1], (arguments, *replies)


def all_tests() -> Iterator[tuple[str, Callable[[], None]]]:
    """Name and test."""
    for iothread in (False, True):
        where = "iothread" if iothread else "main loop"
        yield f"x509: {where}", partial(test_x509, iothread)
        yield f"psk: {where}", partial(test_psk, iothread)
    yield "x509 without verification", test_no_verification
    yield "bad certificates are refused", refused_x509
    yield "wrong keys are refused", refused_psk
    yield "plain clients are refused", refused_plain
    yield "TLS is refused by a plain server", refused_tls
    yield "a new user", new_keys
    yield "objects in use stay", object_in_use
    yield "wrong objects are refused", wrong_objects
    yield "authorization by distinguished name", authz_x509
    yield "authorization of nobody", authz_without_identity
    yield "authorization by user", authz_psk
    yield "hostile clients: main loop", partial(hostile, False)
    yield "hostile clients: iothread", partial(hostile, True)
    yield "nobody reads standard error", nobody_listens
    yield "stalled clients are turned away", stalled_are_turned_away
    yield "objects beside QEMU", beside_qemu


def main() -> int:
    """Make the credentials, then run the tests."""
    global DAEMON, FILES
    DAEMON = str(Path(sys.argv[1]).resolve())
    with tempfile.TemporaryDirectory() as folder:
        try:
            FILES = Files(Path(folder))
        except Skip as reason:
            print(f"1..0 # SKIP {reason}")
            return 0
        return run_tests(list(all_tests()))


if __name__ == "__main__":
    sys.exit(main())
