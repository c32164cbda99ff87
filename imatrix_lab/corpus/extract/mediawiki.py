"""MediaWiki's messages (.json): an object of key and text."""

import re
from collections.abc import Iterator

from imatrix_lab.core.files import from_json
from imatrix_lab.corpus.documents import decode
from imatrix_lab.errors import BadText

_LINK = re.compile(r"\[\[(?:[^\[\]|{}]*\|)?([^\[\]|{}]+)\]\]|\[https?://\S+ ([^\[\]]+)\]")


def strings(name: str, raw: bytes) -> Iterator[str]:
    """Yield the messages, links as their text."""
    try:
        entries = from_json(decode(raw, name))
    except ValueError as error:
        raise BadText(f"this is not JSON: {error}", where=name) from error
    if not isinstance(entries, dict):
        raise BadText("this is not an object of messages", where=name)
    for key, text in entries.items():
        if isinstance(text, str) and not key.startswith("@"):
            yield _LINK.sub(lambda m: m[1] or m[2], text).replace("'''", "").replace("''", "")
