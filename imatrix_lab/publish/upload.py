"""Upload to the Hugging Face Hub: files first, the card last, then a tag.

All files arrive in one commit, after their bytes: the repository never shows a part of them. What
is there already, by its sha256, is not sent again, so that a run that was stopped goes on. No token
is printed, and no error of the Hub's library is passed on (see `core.hub_errors`).
"""

import functools
import logging
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from imatrix_lab.core import hub_http
from imatrix_lab.core.format import size, some
from imatrix_lab.core.hub_errors import Unreachable
from imatrix_lab.core.hub_http import Listing, list_files
from imatrix_lab.core.progress import Progress
from imatrix_lab.errors import FetchFailed, UsageError
from imatrix_lab.publish.files import Item

_AGAIN = "run the same command again: what has arrived is not sent again"
_LOGIN = "hf auth login with a token that may write, or set HF_TOKEN"
_REPO = r"[\w.-]+/[\w.-]+"
SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)")
_VERSION = re.compile(r"v(\d+)")
_BEGUN = {".gitattributes"}
"""What the Hub itself puts into a new repository."""

T = TypeVar("T")


@dataclass(frozen=True)
class Diff:
    """Files against a repository, by name; `stale`: parts of a model that is now split otherwise.

    `kept`: other files of the repository, which stay. `commit`: what it was, "" if it is new.
    """

    new: tuple[str, ...]
    same: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    commit: str = ""
    is_private: bool = False

    def states(self) -> dict[str, str]:
        """Return each name with what will be done about it."""
        words = {"new": "new", "same": "there already", "changed": "changed"}
        words |= {"stale": "stale: deleted", "kept": "kept"}
        return {name: word for key, word in words.items() for name in getattr(self, key)}


def check_repo(repo: str) -> None:
    """Raise UsageError for what cannot be a repository's name."""
    if not re.fullmatch(_REPO, repo, re.ASCII) or ".." in repo or "--" in repo:
        fix = "give the user or organization too: --to user/Model-nb-GGUF"
        raise UsageError(f"{repo!r} is not a repository's name", fix=fix)


def diff(repo: str, items: Sequence[Item]) -> Diff:
    """Compare files with what the Hub has of a repository; a repository need not exist."""
    names = tuple(item.name for item in items)
    api = _api()
    if not _ask(repo, lambda: api.repo_exists(repo)):
        return Diff(names)
    listing = _ask(repo, lambda: list_files(repo, "main"))
    there = listing.files.keys()
    same = [item.name for item in items if item.name in there and _is_same(item, listing)]
    stems = {SHARD.sub("", name) for name in names if name.endswith(".gguf")}
    rest = [name for name in there if name not in names]
    stale = [n for n in rest if n.endswith(".gguf") and SHARD.sub("", n) in stems]
    return Diff(
        new=tuple(n for n in names if n not in there),
        same=tuple(same),
        changed=tuple(n for n in names if n in there and n not in same),
        stale=tuple(stale),
        kept=tuple(n for n in rest if n not in stale and n not in _BEGUN),
        commit=listing.commit,
        is_private=listing.is_private,
    )


def upload(
    repo: str, items: Sequence[Item], is_private: bool, replace: bool, progress: Progress
) -> str:
    """Publish files, whose last is the card; return the tag.

    Raises UsageError: no login, files there that are others and not to be replaced, a public
    repository that was to be private, or a card that the Hub does not take; FetchFailed: the Hub
    cannot be reached, refuses, or lists other bytes than were sent.
    """
    from huggingface_hub import CommitOperationDelete

    api = _api()
    differences = diff(repo, items)
    _require_allowed(repo, differences, is_private, replace)
    _require_card(repo, items[-1])
    if not differences.commit:
        _ask(repo, lambda: api.create_repo(repo, private=is_private or None, exist_ok=True))
    states, card = differences.states(), items[-1]
    files = [i for i in items[:-1] if states[i.name] != "there already"]
    operations = _sent(repo, files, api, progress)
    operations += [CommitOperationDelete(name) for name in differences.stale]
    if operations:
        progress.say(f"{repo}: commit of {len(files)} files")
        _commit(repo, operations, "Add files", differences.commit, api)
    _verify(repo, items[:-1])
    if states[card.name] != "there already":
        _commit(repo, [_addition(card)], "Add the model card", "", api)
    listing = _verify(repo, items)
    return _tag(repo, listing.commit, api)


def _require_allowed(repo: str, differences: Diff, is_private: bool, replace: bool) -> None:
    others = (*differences.changed, *differences.stale)
    if others and not replace:
        what = f"{repo} has other files of these names, or parts of them: {some(others)}"
        fix = "look with --dry-run, then add --replace, or choose another repository with --to"
        raise UsageError(what, where=repo, fix=fix)
    if is_private and differences.commit and not differences.is_private:
        what = "this repository is public already"
        raise UsageError(what, where=repo, fix="choose another repository, or leave --private out")


def _require_card(repo: str, card: Item) -> None:
    """Raise UsageError if the Hub does not take a card's front matter, before anything is sent."""
    from huggingface_hub import ModelCard

    assert isinstance(card.content, bytes)
    try:
        parsed = ModelCard(card.content.decode())
    except Exception as error:  # of YAML, or of what is in it
        raise _bad_card(card, str(error)) from error

    def problem() -> str:
        try:
            parsed.validate(repo_type="model")
        except ValueError as error:
            return str(error)
        return ""

    if why := _ask(repo, problem):
        raise _bad_card(card, why)


def _bad_card(card: Item, why: str) -> UsageError:
    fix = f"correct its front matter in the folder's {card.name}, which is published as it is then"
    return UsageError(f"the Hub does not take this card: {why[:500]}", where=card.name, fix=fix)


def _sent(repo: str, files: Sequence[Item], api: Any, progress: Progress) -> list[Any]:
    """Send the bytes of large files, one at a time; return what makes them part of a commit."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    operations = []
    for k, item in enumerate(files, 1):
        progress.say(f"sending {item.name}, {size(item.size_bytes)} ({k} of {len(files)})")
        operations.append(_addition(item))
        last = operations[-1:]
        _ask(repo, functools.partial(api.preupload_lfs_files, repo, last, free_memory=False))
    return operations


def _addition(item: Item) -> Any:
    from huggingface_hub import CommitOperationAdd

    operation = CommitOperationAdd(item.name, item.content)
    operation.upload_info.sha256 = bytes.fromhex(item.sha256)  # known: large files are read once
    return operation


def _commit(repo: str, operations: Sequence[Any], message: str, parent: str, api: Any) -> None:
    options = {"commit_message": message, "parent_commit": parent or None}
    _ask(repo, lambda: api.create_commit(repo, operations, **options))


def _verify(repo: str, items: Sequence[Item]) -> Listing:
    """Return what the Hub lists; raise FetchFailed unless it has these very bytes."""
    listing = _ask(repo, lambda: list_files(repo, "main"))
    if wrong := [i.name for i in items if i.name not in listing.files or not _is_same(i, listing)]:
        what = f"the Hub lists other bytes than were sent: {', '.join(wrong[:3])}"
        raise FetchFailed(what, where=repo, fix=f"{_AGAIN}; or somebody else is changing {repo}")
    return listing


def _is_same(item: Item, listing: Listing) -> bool:
    """Whether a file on the Hub has these bytes: by its sha256, outside of LFS by Git's SHA-1."""
    from huggingface_hub.utils.sha import git_hash

    entry = listing.files[item.name]
    if entry["size_bytes"] != item.size_bytes:
        return False
    if entry["sha256"]:
        return bool(entry["sha256"] == item.sha256)
    content = item.content if isinstance(item.content, bytes) else item.content.read_bytes()
    return bool(entry["blob"] == git_hash(content))


def _tag(repo: str, commit: str, api: Any) -> str:
    """Tag a commit with the next version, unless one is its already."""
    for _ in range(3):  # other runs may publish at the same time, and make a tag meanwhile
        refs = _ask(repo, lambda: api.list_repo_refs(repo))
        tags = {m[1]: t.target_commit for t in refs.tags if (m := _VERSION.fullmatch(t.name))}
        for number, tagged in tags.items():
            if tagged == commit:
                return f"v{number}"
        new = f"v{max(map(int, tags), default=0) + 1}"
        _ask(repo, functools.partial(api.create_tag, repo, tag=new, revision=commit, exist_ok=True))
    raise FetchFailed("the Hub does not list the tag that was made", where=repo, fix=_AGAIN)


def _api() -> Any:
    """Return the Hub's library with the token of the login."""
    from huggingface_hub import HfApi, get_token

    hub_http.require_network()
    token = get_token()
    if not token:
        raise UsageError("no login to the Hub", fix=_LOGIN)
    # its warnings have signed addresses
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return HfApi(endpoint=hub_http.endpoint(), token=token)


def _ask(repo: str, call: Callable[[], T]) -> T:
    """Call the Hub's library; its errors are replaced by ours, without a link to the original."""
    try:
        return hub_http.ask(repo, "main", lambda: _unwrapped(call))
    except FetchFailed as error:
        ours = error
    denied = not isinstance(ours, Unreachable) and "hf auth login" in (ours.fix or "")
    ours.fix = _LOGIN if denied else _AGAIN
    raise ours


def _unwrapped(call: Callable[[], T]) -> T:
    """Call; of an error that only says which file could not be sent, raise the cause."""
    try:
        return call()
    except RuntimeError as error:
        cause = error.__cause__ or error
    raise cause  # outside: or each would be the other's context
