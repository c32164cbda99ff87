"""The loopback Hub with as much more of its protocol as `datasets` needs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.fakes.hub_server import HubServer, Repos, _Handler

_API = re.compile(r"/api/datasets/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>.+))?")
_TREE = re.compile(
    r"/api/datasets/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?"
)
_PATHS = re.compile(r"/api/datasets/(?P<repo>[^/]+/[^/]+)/paths-info/(?P<revision>[^/]+)")
_RESOLVE = re.compile(r"/datasets/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")


class DatasetHub(HubServer):
    """Serve data sets instead of models."""

    def __init__(self, repos: Repos, card: Mapping[str, Any] | None = None):
        super().__init__(repos, card)
        self._server.RequestHandlerClass = _DatasetHandler


class _DatasetHandler(_Handler):
    def _answer(self) -> None:
        url = urlsplit(self.path)
        if match := _TREE.fullmatch(url.path):
            if found := self._find(match):
                recursive = parse_qs(url.query).get("recursive") in (["True"], ["true"])
                self._json(_entries(found[2], match["folder"] or "", recursive))
        elif match := _API.fullmatch(url.path):
            self._info(match, with_metadata=False)
        elif match := _RESOLVE.fullmatch(url.path):
            self._resolve(match)
        else:
            self._error(404, "", "no such page")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        match = _PATHS.fullmatch(urlsplit(self.path).path)
        if not match:
            self._error(404, "", "no such page")
        elif found := self._find(match):
            paths = json.loads(body)["paths"] if body[:1] == "{" else parse_qs(body)["paths"]
            everything = {e["path"]: e for e in _entries(found[2], "", True)}
            self._json([everything[path] for path in paths if path in everything])


def _entries(blobs: Mapping[str, Any], folder: str, recursive: bool) -> list[dict[str, Any]]:
    """Return files and folders as the Hub lists them."""
    found: dict[str, dict[str, Any]] = {}
    for name, blob in sorted(blobs.items()):
        parts = name.split("/")
        for depth in range(1, len(parts)):
            path = "/".join(parts[:depth])
            found[path] = {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
        found[name] = {
            "type": "file", "path": name, "size": len(blob.content), "oid": blob.git_sha1,
        }  # fmt: skip
    lead = f"{folder}/" if folder else ""
    inside = [e for path, e in found.items() if path.startswith(lead)]
    return [e for e in inside if recursive or "/" not in e["path"][len(lead) :]]
