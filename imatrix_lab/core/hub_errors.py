"""What an error of the Hub's library means, and what helps.

Such errors hold the request, and the request holds the token; an address of a proxy may hold a
password. So neither is passed on or quoted, not even as a cause: ours replace them.
"""

import os
import re
import shlex
import ssl
import sys
from collections.abc import Iterator
from typing import Any

from imatrix_lab.errors import FetchFailed, ImatrixLabError

_LIBRARIES = {"huggingface_hub", "httpx", "httpx2", "hf_xet", "httpcore", "httpcore2"}
_RETRY = "check the connection, then run again: a download continues where it stopped"
_SECRET = re.compile(r"hf_\w+|(?<=://)[^/@\s]+@")
_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")


class Unreachable(FetchFailed):
    """The Hub cannot be reached; if that `may_pass`, it is worth asking again after `wait_s`."""

    may_pass = False
    wait_s = 0.0


def login(repo: str) -> str:
    """Return how to get access to a gated repository."""
    page = f"https://huggingface.co/{repo}"
    return f"accept the licence at {page}, then `hf auth login` or set HF_TOKEN"


def explained(error: Exception, repo: str, revision: str) -> Exception:
    """Return our error for one of the Hub's library; an error of the disk is returned as it is."""
    from huggingface_hub import errors

    http_error = errors.HfHubHTTPError.__bases__[0]  # of httpx, or of its successor
    library = type(error).__module__.partition(".")[0]
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(error, repo, revision)
    proxy = _of_proxy(error, http_error.__module__.partition(".")[0])
    if ours := proxy or _of_certificate(error) or _of_settings(error):
        return type(ours)(ours.what, where=repo, fix=ours.fix)
    if isinstance(error, (http_error, ConnectionError, errors.LocalEntryNotFoundError)):
        named = " in HF_ENDPOINT" if os.environ.get("HF_ENDPOINT") else ""
        through = f" through the proxy in {' and '.join(names)}" if (names := [*_set()]) else ""
        what = f"the Hub{named} cannot be reached{through} ({_reason(error)})"
        ours = Unreachable(what, where=repo, fix=_RETRY)
        ours.may_pass = True
        return ours
    if isinstance(error, ValueError) and "JSON" in type(error).__name__:
        return _not_the_hub(repo)
    if library in _LIBRARIES or isinstance(error, ValueError):
        what = f"unexpected answer from the Hub or a proxy ({_reason(error)})"
    elif isinstance(error, (OSError, ImatrixLabError)):  # a disk; or ours already
        return error
    else:
        what = f"the Hub's library failed ({_reason(error)})"
    return FetchFailed(what, where=repo, fix=_RETRY)


def check_is_hub(response: Any, repo: str) -> None:
    """Raise `Unreachable` for a page where a file was to come."""
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise _not_the_hub(repo)


def _not_the_hub(repo: str) -> Unreachable:
    what = "a page came in place of the Hub's answer: a network that wants a login, or a proxy"
    fix = "open https://huggingface.co in a browser of this machine, then run again"
    return Unreachable(what, where=repo, fix=fix)


def _refused(error: Any, repo: str, revision: str) -> FetchFailed:
    """Return what a status of HTTP means, and the Hub's own code beside it."""
    from huggingface_hub import errors

    status = error.response.status_code
    fix, error_class = _RETRY, FetchFailed
    wait_s = error.response.headers.get("Retry-After", "")
    if isinstance(error, errors.RevisionNotFoundError):
        what = f"{repo} has no revision {revision} (HTTP {status})"
        fix = f"choose one at https://huggingface.co/{repo}/tree/main"
    elif isinstance(error, errors.RepositoryNotFoundError) and not isinstance(
        error, errors.GatedRepoError
    ):
        kind = "data set" if repo.startswith("datasets/") else "model"
        what = f"the Hub shows no {kind} {repo} (revision {revision})"
        fix = f"check the spelling; if it is gated or private, {login(repo)}"
    elif status in (401, 403):
        what, fix = f"the Hub denies access to the files of {repo} (HTTP {status})", login(repo)
    elif status == 404:
        what = f"a file of {repo}, revision {revision}, is missing (HTTP 404)"
    elif status == 429:
        after = f" for {wait_s} s" if wait_s.isdigit() else ""
        what, error_class = (
            f"the Hub asks to wait{after}: too many requests (HTTP 429)",
            Unreachable,
        )
        fix = "run again later; `hf auth login` raises the limit"
    else:
        what, error_class = f"the Hub cannot be reached (HTTP {status})", Unreachable
    ours = error_class(what, where=repo, fix=fix)
    if isinstance(ours, Unreachable):
        ours.may_pass, ours.wait_s = True, float(wait_s) if wait_s.isdigit() else 0.0
    return ours


def _of_proxy(error: Exception, library: str) -> Unreachable | None:
    """Return what is wrong with the proxies that are set, if that is why."""
    names = [*_set()]
    if not names:
        return None
    where = " or ".join(names)
    if isinstance(error, ImportError) and "SOCKS" in str(error):
        unset = " ".join(f"-u {name}" for name in names)
        install = f"{shlex.quote(sys.executable)} -m pip install '{library}[socks]' PySocks"
        what = f"a SOCKS proxy ({where}) needs a package that is not installed"
        return Unreachable(what, fix=f"env {unset} {install}")
    if type(error).__name__ == "ProxyError":
        what = f"the proxy in {where} refuses ({_reason(error)})"
        return Unreachable(what, fix=f"correct {where}, with user and password if it asks for them")
    if type(error).__name__ == "InvalidURL" or "proxy URL" in str(error):
        what = f"the address in {where} is not one of a proxy: http://HOST:PORT or socks5://…"
        return Unreachable(what, fix=f"unset {' '.join(names)}, or correct the address")
    return None


def _set() -> Iterator[str]:
    """Yield the variables that name a proxy for the Hub, as they are spelt in the environment."""
    for name in (spelt for upper in _PROXIES for spelt in (upper.lower(), upper)):
        scheme = "http" if os.environ.get("HF_ENDPOINT", "").startswith("http:") else "https"
        applies = name.upper() in (f"{scheme}_proxy".upper(), "ALL_PROXY")
        if os.environ.get(name) and applies:
            yield name


def _of_settings(error: Exception) -> FetchFailed | None:
    """Return that the token or the folder of the Hub's library is none."""
    if isinstance(error, UnicodeEncodeError):  # of the one header with text of the user's
        what = "the Hub's token has characters that no token has"
        return FetchFailed(what, fix="hf auth login, or correct HF_TOKEN")
    if isinstance(error, NotADirectoryError):
        what = f"{error.filename}: its folder is a file"
        return FetchFailed(what, fix="correct HF_HOME, or unset it")
    return None


def _of_certificate(error: BaseException | None) -> Unreachable | None:
    """Return that a certificate is not trusted, or that our own cannot be read."""
    named = next((n for n in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(n)), "")
    if named and isinstance(error, (FileNotFoundError, ssl.SSLError)):
        what = f"{named} names no certificates that can be read"
        return Unreachable(what, fix=f"set {named} to a file of certificates (PEM), or unset it")
    seen = set[int]()  # a chain of causes may be a ring
    while error and id(error) not in seen and not isinstance(error, ssl.SSLError):
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    if not isinstance(error, ssl.SSLCertVerificationError):
        return None
    why = error.verify_message
    what = f"the certificate of the Hub, or of a proxy in between, is not trusted: {why}"
    fix = "SSL_CERT_FILE=FILE with the proxy's certificate (PEM; ask who runs the network)"
    return Unreachable(what, fix=fix)


def _reason(error: Exception) -> str:
    """Return kind and first line of an error, without what may be secret."""
    from huggingface_hub import get_token

    text = (str(error).splitlines() or [""])[0]
    text = text.replace(token, "…") if (token := get_token()) else text
    text = _SECRET.sub("…", text)[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
