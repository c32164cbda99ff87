"""Where a cluster's scheduler is, and how to talk to it: addresses, certificates, files.

The file is JSON with `address`, as Dask's own scheduler files have it, and for a scheduler that was
started for one run its certificate and key, which let whoever reads the file run programs on every
machine of the cluster: only its owner can.
"""

import contextlib
import ipaddress
import json
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from imatrix_lab.core.files import canonical_json
from imatrix_lab.core.paths import pip_install
from imatrix_lab.errors import MissingTool, UsageError

SETTINGS = {
    "distributed.comm.timeouts.tcp": "180s",  # a network that is away for a minute
    "distributed.worker.profile.enabled": False,
    # not OMP_NUM_THREADS and the like: threads are ours
    "distributed.nanny.pre-spawn-environ": {"DASK_LOGGING__DISTRIBUTED": "critical"},
    "distributed.diagnostics.nvml": False,
    "distributed.scheduler.http.routes": [],  # pages that anyone could read
    "distributed.worker.http.routes": [],
    "distributed.admin.tick.limit": "1h",  # native code may hold the interpreter
}
"""Dask's settings in every process that we start."""
HTTP = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
SCHEMES = ("tcp", "tls")


def dask() -> Any:
    """Return the module ``distributed``, set up as we need it."""
    try:
        import dask.config
        import distributed
    except ImportError as error:
        fix = pip_install("'imatrix_lab[cluster]'")
        raise MissingTool(f"Dask is not installed ({error})", fix=fix) from error
    dask.config.set(SETTINGS)
    for name in [n for n in logging.root.manager.loggerDict if n.startswith("distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters we say ourselves
    return distributed


@dataclass(frozen=True)
class Address:
    """A scheduler's address; `certificate` and `key` are PEM texts, empty without."""

    address: str
    certificate: str = ""
    key: str = ""

    def security(self) -> Any:
        """Return Dask's settings: our certificate, else for tls:// Dask's configuration's."""
        security, pem = dask().Security, self.certificate
        if not pem:
            return security(require_encryption=self.address.startswith("tls:"))
        roles = {f"tls_{r}_cert": pem for r in ("client", "scheduler", "worker")}
        roles |= {f"tls_{r}_key": self.key for r in ("client", "scheduler", "worker")}
        return security(require_encryption=True, tls_ca_file=pem, **roles)

    def is_open(self) -> bool:
        """Whether everyone on the network can run programs on this cluster."""
        split = urlsplit(self.address)
        with contextlib.suppress(ValueError, OSError):
            ip = ipaddress.ip_address(socket.gethostbyname(split.hostname or ""))
            return split.scheme == "tcp" and not ip.is_loopback
        return split.scheme == "tcp"

    def text(self) -> str:
        """Return the text of a scheduler file."""
        return canonical_json({"type": "Scheduler", **vars(self)})


def new_certificate() -> tuple[str, str]:
    """Return a new certificate, which certifies itself, and its key: PEM, valid for a year."""
    security = dask().Security.temporary()
    return security.tls_ca_file, security.tls_client_key


def parse(address: str) -> Address:
    """Return an address that a user gave."""
    split = urlsplit(address)
    with contextlib.suppress(ValueError):
        if split.scheme in SCHEMES and split.hostname and split.port:
            return Address(address)
    raise UsageError(
        f"{address!r} is not the address of a scheduler", fix="give one like tls://HOST:PORT"
    )


def read(text: str, where: Path | str) -> Address:
    """Return what a scheduler file has; `UsageError` if it is none."""
    try:
        raw = json.loads(text)
        return Address(raw["address"], raw.get("certificate", ""), raw.get("key", ""))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError("this is not a scheduler file", where=where) from error


@contextlib.contextmanager
def announced(path: Path, address: Address) -> Iterator[None]:
    """Let workers find a scheduler by a file that only its owner can read, while the block runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(address.text())
    temporary.replace(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if path.read_text(encoding="utf-8") == address.text():  # and not a later run's
                path.unlink()
