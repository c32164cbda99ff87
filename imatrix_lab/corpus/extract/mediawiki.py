"""MediaWiki's messages (.json): an object of key and text."""

import json
import re
from collections.abc import Iterator

from imatrix_lab.corpus.documents import decode
from imatrix_lab.corpus.extract import strings
from imatrix_lab.errors import BadText

_LINK = re.compile(r"\[\[(?:[^\[\]|{}]*\|)?([^\[\]|{}]+)\]\]|\[https?://\S+ ([^\[\]]+)\]")


def extract(name: str, raw: bytes) -> Iterator[str]:
    """Yield documents of the sentences among the messages, links as their text."""
    try:
        entries = json.loads(decode(raw, name))
    except (ValueError, RecursionError) as error:
        raise BadText(f"this is not JSON: {error}", where=name) from error
    if not isinstance(entries, dict):
        raise BadText("this is not an object of messages", where=name)
    texts = [v for k, v in entries.items() if isinstance(v, str) and not k.startswith("@")]
    return strings.documents(
        _LINK.sub(lambda m: m[1] or m[2], text).replace("'''", "").replace("''", "")
        for text in texts
    )
