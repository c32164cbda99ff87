"""What the loopback Hub needs to take uploads: LFS, multipart, commits, tags, as huggingface_hub 2
speaks them (``_commit_api.py``, ``lfs.py``)."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.fakes.hub_server import Blob, Handler, HubServer

PART_BYTES = 100_000
"""Larger files come in parts."""
_MODEL = r"/api/models/(?P<repo>[^/]+/[^/]+)"
_ROUTES = {
    "create": r"/api/repos/create",
    "yaml": r"/api/validate-yaml",
    "preupload": _MODEL + r"/preupload/(?P<revision>[^/]+)",
    "commit": _MODEL + r"/commit/(?P<revision>[^/]+)",
    "tag": _MODEL + r"/tag/(?P<revision>[^/]+)",
    "refs": _MODEL + r"/refs",
    "batch": r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch",
    "put": r"/storage/(?P<oid>[0-9a-f]{64})(?:/(?P<part>\d+))?",
    "complete": r"/complete/(?P<oid>[0-9a-f]{64})",
    "verify": r"/verify",
}


class Cut(Exception):
    """The connection is cut here."""


@dataclass
class Storage:
    """What was sent: whole objects, and parts of others, by sha256."""

    objects: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    n_bytes: int = 0


class UploadHub(HubServer):
    """A Hub that takes uploads from one user.

    `cut_after` bytes of bodies and answers, `on_cut` is called and every connection breaks until
    `mend`; `commits` has what main was after each commit. `corrupts` names a file of which other
    bytes are kept than came.
    """

    def __init__(self, token: str):
        super().__init__({})
        self.token, self.storage = token, Storage()
        self.tags: dict[str, dict[str, str]] = {}
        self.history: list[tuple[str, frozenset[str]]] = []
        self.corrupts = ""
        self.left: int | None = None
        self.is_cut = False
        self.on_cut: Callable[[], None] = lambda: None

    def cut_after(self, n_units: int) -> None:
        """Break every connection after so many kilobytes of bodies and answers."""
        self.left = n_units

    def mend(self) -> None:
        self.left, self.is_cut = None, False

    def forget(self) -> None:
        """Forget what was uploaded."""
        self.mend()
        self._repos.clear()
        self._commits.clear()
        self.tags.clear()
        self.history.clear()
        self.storage = Storage()

    def count(self, n_units: int) -> None:
        """Count what passes; raise `Cut` at the place that was set, and after it."""
        if self.left is not None:
            self.left -= n_units
            if self.left < 0 and not self.is_cut:
                self.is_cut = True
                self.on_cut()
        if self.is_cut:
            raise Cut

    def blobs(self, repo: str, revision: str = "main") -> dict[str, Blob]:
        return dict(self._commits[repo, self._repos[repo][revision]])

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """Return what a revision has; nothing if there is no such repository."""
        return (
            {n: b.content for n, b in self.blobs(repo, revision).items()}
            if repo in self._repos
            else {}
        )

    def _set(self, repo: str, blobs: dict[str, Blob]) -> str:
        listing = [repo, len(self.history), sorted((n, b.sha256) for n, b in blobs.items())]
        commit = hashlib.sha1(json.dumps(listing).encode()).hexdigest()
        self._repos.setdefault(repo, {})["main"] = commit
        self._commits[repo, commit] = blobs
        self.history.append((repo, frozenset(blobs)))
        return commit


class _Handler(Handler):
    hub: UploadHub

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        for name, pattern in _ROUTES.items():
            if match := re.fullmatch(pattern, path):
                try:
                    self.hub.count(1)
                    self._note()
                    body = self._body()
                    if name not in ("put", "complete", "yaml") and not self._is_user():
                        self._error(401, "", "Invalid username or password.")
                        return
                    getattr(self, f"_{name}")(match, body)
                    self.hub.count(1)
                except Cut:
                    self._break()
                return
        if self.hub.is_cut:
            self._break()
            return
        super()._answer()

    def _break(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _is_user(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _body(self) -> bytes:
        left, blocks = int(self.headers.get("Content-Length") or 0), []
        if self.headers.get("Transfer-Encoding") == "chunked":
            return b"".join(self._chunks())
        while left > 0 and (block := self.rfile.read(min(left, 1000))):
            self.hub.count(1)
            blocks.append(block)
            left -= len(block)
        return b"".join(blocks)

    def _chunks(self) -> Any:
        while n := int(self.rfile.readline(), 16):
            self.hub.count(1 + n // 1000)
            yield self.rfile.read(n)
            self.rfile.readline()
        self.rfile.readline()

    def _create(self, match: re.Match[str], body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        url = f"{self.hub.endpoint}/{repo}"
        if repo in self.hub._repos:
            self._json({"error": "You already created this model repo", "url": url}, 409)
            return
        self.hub.private[repo] = asked.get("visibility") == "private"
        self.hub._set(repo, {".gitattributes": Blob(b"*.gguf filter=lfs\n", False)})
        self._json({"url": url})

    def _yaml(self, match: re.Match[str], body: bytes) -> None:
        import yaml

        front = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
        if isinstance(front, dict) and " " not in str(front.get("license", "")):
            self._json({"errors": [], "warnings": []})
        else:
            self._error(400, "", "Invalid metadata: license must be one of …")

    def _preupload(self, match: re.Match[str], body: bytes) -> None:
        if found := self._find(match):
            there = found[2]
            self._json({"files": [self._mode(file, there) for file in json.loads(body)["files"]]})

    def _mode(self, file: dict[str, Any], there: dict[str, Blob]) -> dict[str, Any]:
        sample = base64.b64decode(file["sample"])
        is_lfs = file["size"] > 10_000_000 or b"\0" in sample
        oid = there[file["path"]].etag if file["path"] in there else None
        mode = "lfs" if is_lfs else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _batch(self, match: re.Match[str], body: bytes) -> None:
        asked = json.loads(body)
        assert asked["operation"] == "upload" and asked["hash_algo"] == "sha256"
        objects = [self._instructions(o["oid"], o["size"]) for o in asked["objects"]]
        self._json({"transfer": "multipart", "objects": objects})

    def _instructions(self, oid: str, size: int) -> dict[str, Any]:
        entry: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
        if oid in self.hub.storage.objects:
            return entry
        base, secret = self.hub.endpoint, secrets.token_hex(4)
        upload: dict[str, Any] = {"href": f"{base}/storage/{oid}?signature={secret}"}
        if size > PART_BYTES:
            urls = {
                str(i + 1): f"{base}/storage/{oid}/{i + 1}?signature={secret}"
                for i in range(-(-size // PART_BYTES))
            }
            header = {"chunk_size": str(PART_BYTES), **urls}
            upload = {"href": f"{base}/complete/{oid}", "header": header}
        return {**entry, "actions": {"upload": upload, "verify": {"href": f"{base}/verify"}}}

    def _put(self, match: re.Match[str], body: bytes) -> None:
        assert not self.headers.get("Authorization"), "the token must not go to the storage"
        self.hub.storage.n_bytes += len(body)
        if match["part"]:
            self.hub.storage.parts.setdefault(match["oid"], {})[int(match["part"])] = body
        else:
            self._keep(match["oid"], body)
        self._start(200, 0, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    def _keep(self, oid: str, content: bytes) -> bool:
        whole = hashlib.sha256(content).hexdigest() == oid
        if whole:
            self.hub.storage.objects[oid] = content
        return whole

    def _complete(self, match: re.Match[str], body: bytes) -> None:
        oid, parts = match["oid"], self.hub.storage.parts.get(match["oid"], {})
        named = json.loads(body)["parts"]
        etags = [f'"{hashlib.md5(parts[p["partNumber"]]).hexdigest()}"' for p in named]
        content = b"".join(parts[p["partNumber"]] for p in named)
        if etags == [p["etag"] for p in named] and self._keep(oid, content):
            self._json({"success": True})
        else:
            self._error(400, "", "parts are missing")

    def _verify(self, match: re.Match[str], body: bytes) -> None:
        asked = json.loads(body)
        content = self.hub.storage.objects.get(asked["oid"])
        if content is None or len(content) != asked["size"]:
            self._error(404, "", "no such object")
        else:
            self._json({"success": True})

    def _commit(self, match: re.Match[str], body: bytes) -> None:
        if not (found := self._find(match)):
            return
        repo, head, blobs = found[0], found[1], dict(found[2])
        lines = [json.loads(line) for line in body.splitlines()]
        parent = lines[0]["value"].get("parentCommit")
        if parent not in (None, head):
            self._error(412, "", "A commit has happened since. Please refresh and try again.")
            return
        for line in lines[1:]:
            value = line["value"]
            name = value["path"]
            if line["key"] == "deletedFile":
                del blobs[name]
            elif line["key"] == "file":
                blobs[name] = Blob(base64.b64decode(value["content"]), False)
            elif value["oid"] in self.hub.storage.objects:
                blobs[name] = Blob(self.hub.storage.objects[value["oid"]], True)
            else:
                self._error(400, "", f"LFS object of {name} is missing")
                return
            if name == self.hub.corrupts:
                blobs[name] = Blob(blobs[name].content[:-1] + b"?", blobs[name].is_lfs)
        commit = self.hub._set(repo, blobs)
        self.hub.count(1)  # it may have happened, and nobody hears of it
        url = f"{self.hub.endpoint}/{repo}/commit/{commit}"
        self._json({"success": True, "commitUrl": url, "commitOid": commit})

    def _tag(self, match: re.Match[str], body: bytes) -> None:
        repo, name = match["repo"], json.loads(body)["tag"]
        tags = self.hub.tags.setdefault(repo, {})
        if name in tags:
            self._error(409, "", "Tag already exists")
            return
        revision = unquote(match["revision"])
        tags[name] = self.hub._repos[repo].get(revision, revision)
        self.hub._repos[repo][name] = tags[name]
        self._json({})

    def _refs(self, match: re.Match[str], body: bytes) -> None:
        repo = match["repo"]
        tags = [
            {"name": name, "ref": f"refs/tags/{name}", "targetCommit": commit}
            for name, commit in self.hub.tags.get(repo, {}).items()
        ]
        head = self.hub._repos[repo]["main"]
        branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": head}]
        self._json({"branches": branches, "converts": [], "tags": tags})


UploadHub.handler = _Handler
