# SPDX-License-Identifier: MIT
"""Certificates and pre-shared keys, made with certtool and psktool for as long as a test runs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from nbd_daemon import Skip

LONG_AGO = 'activation_date = "2020-01-01 00:00:00"\nexpiration_date = "2020-02-01 00:00:00"\n'
TODAY = "expiration_days = 1\n"

AUTHORITY = "ca\ncert_signing_key\n"
SERVER = ('dns_name = "localhost"\nip_address = "127.0.0.1"\ntls_www_server\nsigning_key\n')
CLIENT = "tls_www_client\nsigning_key\n"


def _run(*command: str) -> None:
    if not shutil.which(command[0]):
        raise Skip(f"{command[0]} is not installed")
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=60, check=False)
    assert done.returncode == 0, (command, done.stdout)


class Pki:
    """Certificates by name in one folder; folders of credentials are put together from them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def cert(self, name: str) -> Path:
        """The file of a certificate."""
        return self.folder / f"{name}-cert.pem"

    def key(self, name: str) -> Path:
        """The file of a certificate's key."""
        return self.folder / f"{name}-key.pem"

    def make(self, name: str, common_name: str, template: str, issuer: str | None = None,
             when: str = TODAY) -> None:
        """A key and a certificate for it, of an issuer or self-signed."""
        info = self.folder / f"{name}.template"
        info.write_text(f'cn = "{common_name}"\n{template}{when}')
        _run("certtool", "--generate-privkey", "--key-type=ecdsa", "--curve=secp256r1",
             "--no-text", f"--outfile={self.key(name)}")
        signed = (["--generate-self-signed"] if issuer is None else
                  ["--generate-certificate", f"--load-ca-certificate={self.cert(issuer)}",
                   f"--load-ca-privkey={self.key(issuer)}"])
        _run("certtool", *signed, f"--load-privkey={self.key(name)}", f"--template={info}",
             "--no-text", f"--outfile={self.cert(name)}")

    def revoke(self, name: str, issuer: str) -> Path:
        """A list of the issuer's that says the certificate is not to be trusted any more."""
        info = self.folder / "crl.template"
        info.write_text("crl_next_update = 10\ncrl_number = 1\n")
        made = self.folder / f"{name}-crl.pem"
        _run("certtool", "--generate-crl", f"--load-ca-certificate={self.cert(issuer)}",
             f"--load-ca-privkey={self.key(issuer)}", f"--load-certificate={self.cert(name)}",
             f"--template={info}", f"--outfile={made}")
        return made

    def credentials(self, folder: str, authority: str, server: str | None = None,
                    client: str | None = None) -> Path:
        """A folder with the names that credentials have."""
        made = self.folder / folder
        made.mkdir()
        shutil.copy(self.cert(authority), made / "ca-cert.pem")
        for side, name in (("server", server), ("client", client)):
            if name is not None:
                shutil.copy(self.cert(name), made / f"{side}-cert.pem")
                shutil.copy(self.key(name), made / f"{side}-key.pem")
        return made


def make_keys(folder: Path, *users: str) -> Path:
    """A folder with a file of pre-shared keys, one for each user."""
    folder.mkdir()
    for user in users:
        _run("psktool", f"--username={user}", f"--pskfile={folder / 'keys.psk'}")
    return folder
