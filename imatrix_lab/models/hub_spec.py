"""What a user may write for a file on the Hub: ``hf:`` and the Hub's own addresses.

hf:org/repo[@revision][:type, file or glob]     hf:org/repo[@revision]/file
https://huggingface.co/org/repo[/blob/main/x.gguf], hf.co/org/repo:Q8_0
"""

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from imatrix_lab.core.hub_http import endpoint
from imatrix_lab.errors import UsageError

_REPO = r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
_COLON = re.compile(
    rf"{_REPO}(?:@(?P<revision>[^@:\s]+))?(?::(?P<pattern>[^:\s/][^:]*))?", re.ASCII
)
_SLASH = re.compile(
    rf"{_REPO}(?:@(?P<revision>refs/(?:pr|convert)/[^@:/\s]+|[^@:/\s]+))?/(?P<pattern>[^:\s/][^:]*)",
    re.ASCII,
)
_FILE = re.compile(r".*\.(gguf|gguf_file|dat|imatrix|safetensors)", re.IGNORECASE)
_URL = re.compile(r"https?://", re.IGNORECASE)
_HOSTS = {"huggingface.co", "www.huggingface.co", "hf.co"}
_NO_MODELS = {"datasets": "data sets", "spaces": "spaces", "collections": "collections"}


@dataclass(frozen=True)
class HubRef:
    """A requested model: a repository, a revision of it, and which of its files."""

    repo: str
    revision: str | None = None
    pattern: str | None = None

    def __str__(self) -> str:
        """Return it as written on the command line."""
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.repo}{revision}" + (f":{self.pattern}" if self.pattern else "")


def is_spec(word: str) -> bool:
    """Return whether a word names something on the Hub, or an address on the web, and no path."""
    return word.startswith("hf:") or bool(_URL.match(word)) or _host(word) in _HOSTS


def parse(spec: str) -> HubRef:
    """Return the parts of a word that names files on the Hub, or raise `UsageError`."""
    word = re.sub("^hf:(//)?", "", spec)
    if _URL.match(word) or _host(word) in _HOSTS:
        return _of_url(word, spec)
    if word == spec:
        raise _wrong(spec)
    match = _COLON.fullmatch(word)
    revision = (match and match["revision"]) or ""
    if not match or ("/" in revision and not match["pattern"] and _FILE.fullmatch(revision)):
        match = _SLASH.fullmatch(word)
    if not match:
        raise _wrong(spec)
    return _ref(spec, match["repo"], match["revision"], match["pattern"])


def _of_url(word: str, spec: str) -> HubRef:
    """Return what an address of the Hub shows: a repository, a folder of it, or a file."""
    try:
        url = urlsplit(word if _URL.match(word) else f"https://{word}")
    except ValueError:
        raise _wrong(spec) from None
    if "@" in url.netloc:  # nothing of it is repeated
        what = "an address with a user or a token in it"
        raise UsageError(what, fix="hf auth login, and the address without it")
    if (url.hostname or "") not in {*_HOSTS, urlsplit(endpoint()).hostname}:
        what = "an address that is not the Hub's"
        raise UsageError(what, where=spec, fix="download the file, and name its path")
    parts = [unquote(part) for part in url.path.split("/") if part]
    if parts and parts[0] in _NO_MODELS:
        what = f"the Hub's {_NO_MODELS[parts[0]]} hold no models"
        raise UsageError(what, where=spec, fix="the address of a model's page")
    if len(parts) < 2:
        raise _wrong(spec)
    name, _, pattern = parts[1].removesuffix(".git").partition(":")
    repo, rest = f"{parts[0]}/{name}", parts[2:]
    if len(rest) < 2 or rest[0] not in {"tree", "blob", "resolve", "raw", "blame"}:
        viewed = parse_qs(url.query).get("show_file_info", [""])[0]
        return _ref(spec, repo, None, pattern or viewed or None)
    n_revision = 3 if rest[1] == "refs" and len(rest) > 3 else 1
    revision, path = "/".join(rest[1 : 1 + n_revision]), "/".join(rest[1 + n_revision :])
    if path and rest[0] == "tree":
        path += "/*"
    return _ref(spec, repo, None if revision == "main" else revision, path or None)


def _ref(spec: str, repo: str, revision: str | None, pattern: str | None) -> HubRef:
    leads_away = ".." in repo or ".." in (revision or "").split("/")
    if not re.fullmatch(_REPO, repo, re.ASCII) or leads_away or "--" in repo:
        raise _wrong(spec)
    if revision and re.fullmatch("[0-9A-Fa-f]{40}", revision):
        revision = revision.lower()
    return HubRef(repo, revision, pattern)


def _host(word: str) -> str:
    return word.partition("/")[0].lower()


def _wrong(spec: str) -> UsageError:
    example = "for example 'hf:org/model-GGUF:Q8_0' or 'hf:org/model-GGUF@main:*Q8_0*.gguf'"
    fix = f"write hf:org/repo[@revision][:type, file or glob], {example}"
    return UsageError(f"not a model on the Hub: {spec}", fix=fix)
