"""A loopback server that speaks as much of the Hub's protocol as models and data sets need."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import ssl
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

Repos = Mapping[str, Mapping[str, Mapping[str, "bytes | Path"]]]

_REPO = r"(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"
_API = re.compile(rf"/api/{_REPO}(?:/revision/(?P<revision>[^/]+))?")
_TREE = re.compile(rf"/api/{_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?")
_PATHS = re.compile(rf"/api/{_REPO}/paths-info/(?P<revision>[^/]+)")
_RESOLVE = re.compile(
    r"/(?:datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)"
)
_CDN = re.compile(r"/cdn/(?P<sha256>[0-9a-f]{64})/(?P<name>.+)")


@dataclass(frozen=True)
class Request:
    """What a client asked for."""

    method: str
    path: str
    range: str | None
    authorization: str | None
    host: str


@dataclass
class Blob:
    """A file of a commit."""

    content: bytes
    is_lfs: bool
    sha256: str = field(init=False)
    git_sha1: str = field(init=False)

    def __post_init__(self) -> None:
        self.sha256 = hashlib.sha256(self.content).hexdigest()
        header = b"blob %d\0" % len(self.content)
        self.git_sha1 = hashlib.sha1(header + self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.git_sha1

    def sibling(self, name: str, with_metadata: bool) -> dict[str, Any]:
        entry: dict[str, Any] = {"rfilename": name}
        if with_metadata:
            entry |= {"size": len(self.content), "blobId": self.git_sha1}
            if self.is_lfs:
                entry["lfs"] = {
                    "sha256": self.sha256,
                    "size": len(self.content),
                    "pointerSize": 134,
                }
        return entry


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients are killed in tests
            super().handle_error(request, client_address)


class HubServer:
    """Serve ``{repo: {revision: {file: bytes or path}}}`` on 127.0.0.1, as a context manager.

    GGUF, safetensors and Parquet files are LFS files: they are redirected, as on the Hub, to
    another host name (``localhost``), which must not be sent the token. The methods below make
    it misbehave; `requests` has all that was asked.
    """

    handler: type[Handler]
    """What answers; subclasses have others."""

    def __init__(self, repos: Repos, card: Mapping[str, Any] | None = None):
        self.requests: list[Request] = []
        self.card = dict(card or {})
        self.private: dict[str, bool] = {}
        self._repos: dict[str, dict[str, str]] = {}
        self._commits: dict[tuple[str, str], dict[str, Blob]] = {}
        self._cuts: dict[str, int] = {}
        self._corrupt: set[str] = set()
        self._broken: dict[str, int] = {}
        self._troubles: list[tuple[str, int, dict[str, str], bytes]] = []
        self._gates: dict[str, str | None] = {}
        self._connections: list[socket.socket] = []
        self._server = _Server(("127.0.0.1", 0), self.handler)
        self._server.daemon_threads = True
        cast(Any, self._server).hub = self
        for repo, revisions in repos.items():
            for revision, files in revisions.items():
                self.push(repo, revision, files)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def endpoint(self) -> str:
        """The address for ``HF_ENDPOINT``."""
        return f"http://127.0.0.1:{self.port}"

    def push(self, repo: str, revision: str, files: Mapping[str, bytes | Path]) -> str:
        """Make a revision point at these files; return the commit."""
        blobs = {
            name: Blob(
                content if isinstance(content, bytes) else content.read_bytes(),
                name.endswith((".gguf", ".safetensors", ".model", ".parquet")),
            )
            for name, content in files.items()
        }
        inventory = [repo, sorted((name, blob.sha256) for name, blob in blobs.items())]
        commit = hashlib.sha1(json.dumps(inventory).encode()).hexdigest()
        self._repos.setdefault(repo, {})[revision] = commit
        self._commits[repo, commit] = blobs
        return commit

    def commit(self, repo: str, revision: str = "main") -> str:
        """Return the commit that a revision points at."""
        return self._repos[repo][revision]

    def cut(self, name: str, after_bytes: int) -> None:
        """Drop the connection after so many bytes of this file, once."""
        self._cuts[name] = after_bytes

    def corrupt(self, name: str, corrupt: bool = True) -> None:
        """Send wrong bytes, of the right length, for this file; or no longer."""
        (self._corrupt.add if corrupt else self._corrupt.discard)(name)

    def fail(self, name: str, status: int | None) -> None:
        """Answer requests for this file that have a Range with an error; None mends it."""
        if status is None:
            self._broken.pop(name, None)
        else:
            self._broken[name] = status

    def trouble(
        self, path: str, status: int, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> None:
        """Answer the next request whose path has this in it as a proxy or an ill Hub would."""
        self._troubles.append((path, status, dict(headers or {}), body))

    def encrypt(self, context: ssl.SSLContext) -> None:
        """Speak TLS from now on."""
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def gate(self, repo: str, token: str | None = None) -> None:
        """Give this repository's files only to this token."""
        self._gates[repo] = token

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:  # clients keep theirs, and would still be answered
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    """Answers what reads a repository."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> HubServer:
        return cast(HubServer, cast(Any, self.server).hub)

    def setup(self) -> None:
        super().setup()
        self.hub._connections.append(self.connection)

    def log_message(self, *args: object) -> None:
        """Stay silent."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _note(self) -> None:
        get = self.headers.get
        self.hub.requests.append(
            Request(self.command, self.path, get("Range"), get("Authorization"), get("Host") or "")
        )

    def _answer(self) -> None:
        self._note()
        url = urlsplit(self.path)
        for trouble in self.hub._troubles:
            if trouble[0] in self.path:
                self.hub._troubles.remove(trouble)
                _, status, headers, body = trouble
                self._start(status, len(body), headers)
                if self.command != "HEAD":
                    self.wfile.write(body)
                return
        if match := _API.fullmatch(url.path):
            self._info(match, with_metadata="blobs" in parse_qs(url.query))
        elif match := _TREE.fullmatch(url.path):
            self._tree(match, "true" in parse_qs(url.query.lower()).get("recursive", []))
        elif match := _PATHS.fullmatch(url.path):
            self._paths(match)
        elif match := _RESOLVE.fullmatch(url.path):
            self._resolve(match)
        elif match := _CDN.fullmatch(url.path):
            blobs = [b for c in self.hub._commits.values() for b in c.values()]
            blob = next(b for b in blobs if b.sha256 == match["sha256"])
            self._send(unquote(match["name"]), blob, {})
        else:
            self._error(404, "", "no such page")

    def _find(self, match: re.Match[str]) -> tuple[str, str, dict[str, Blob]] | None:
        repo, revision = match["repo"], unquote(match["revision"] or "main")
        revisions = self.hub._repos.get(repo)
        if revisions is None:
            self._error(
                404 if self.headers.get("Authorization") else 401,
                "RepoNotFound",
                "Repository not found",
            )
            return None
        commit = revisions.get(revision, revision)
        if (repo, commit) not in self.hub._commits:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repo, commit, self.hub._commits[repo, commit]

    def _info(self, match: re.Match[str], with_metadata: bool) -> None:
        if found := self._find(match):
            repo, commit, blobs = found
            self._json(
                {
                    "_id": "0",
                    "id": repo,
                    "modelId": repo,
                    "sha": commit,
                    "private": self.hub.private.get(repo, False),
                    "gated": "manual" if repo in self.hub._gates else False,
                    "cardData": self.hub.card,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                    "siblings": [b.sibling(n, with_metadata) for n, b in sorted(blobs.items())],
                }
            )

    def _tree(self, match: re.Match[str], recursive: bool) -> None:
        if found := self._find(match):
            folder = unquote(match["folder"] or "")
            entries = _entries(found[2], folder)
            if not recursive:
                entries = [e for e in entries if "/" not in e["path"][len(folder) :].strip("/")]
            if folder and not entries:
                self._error(404, "EntryNotFound", f"{folder} does not exist")
            else:
                self._json(entries)

    def _paths(self, match: re.Match[str]) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        wanted = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        if found := self._find(match):
            self._json([e for e in _entries(found[2], "") if e["path"] in wanted])

    def _resolve(self, match: re.Match[str]) -> None:
        found = self._find(match)
        if not found:
            return
        repo, commit, blobs = found
        name = unquote(match["name"])
        authorization = self.headers.get("Authorization")
        if repo in self.hub._gates:
            if not authorization:
                self._error(401, "GatedRepo", f"Access to model {repo} is restricted.")
                return
            if authorization != f"Bearer {self.hub._gates[repo]}":
                self._error(403, "GatedRepo", f"{authorization} is not in the authorized list.")
                return
        if name not in blobs:
            self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            return
        blob = blobs[name]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.etag}"'}
        if not blob.is_lfs:
            self._send(name, blob, headers)
            return
        headers |= {
            "X-Linked-ETag": f'"{blob.sha256}"',
            "X-Linked-Size": str(len(blob.content)),
            "Location": f"http://localhost:{self.hub.port}/cdn/{blob.sha256}/{name}",
        }
        self._start(302, 0, headers)

    def _send(self, name: str, blob: Blob, headers: dict[str, str]) -> None:
        content, status = blob.content, 200
        if name in self.hub._corrupt:
            content = bytes(b ^ 0xFF for b in content)
        headers = {"Accept-Ranges": "bytes", "ETag": f'"{blob.etag}"', **headers}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            if name in self.hub._broken:
                self._error(self.hub._broken[name], "", "out of order")
                return
            first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        self._start(status, len(content), headers)
        if self.command == "HEAD":
            return
        after_bytes = self.hub._cuts.pop(name, None)
        self.wfile.write(content[:after_bytes])
        if after_bytes is not None:
            self.wfile.flush()
            self.close_connection = True

    def _json(self, value: object, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self._start(status, len(body), {"Content-Type": "application/json"})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _error(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        body = json.dumps({"error": message}).encode()
        extra = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        self._start(status, len(body), {**extra, **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _start(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()


def _entries(blobs: Mapping[str, Blob], folder: str) -> list[dict[str, Any]]:
    """Return the files and folders below a folder, as the Hub's tree has them."""
    below = {n: b for n, b in sorted(blobs.items()) if not folder or n.startswith(f"{folder}/")}
    folders = {str(p) for n in below for p in PurePosixPath(n).parents if str(p) != "."}
    entries: list[dict[str, Any]] = [
        {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}
        for path in sorted(folders)
        if not folder or path.startswith(f"{folder}/")
    ]
    for name, blob in below.items():
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(blob.content)}
        entry["oid"] = blob.git_sha1
        if blob.is_lfs:
            size = len(blob.content)
            entry["lfs"] = {"oid": blob.sha256, "size": size, "pointerSize": 134}
        entries.append(entry)
    return entries


HubServer.handler = Handler
