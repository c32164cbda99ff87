"""The page for votes: one HTML file that works without a network, on a phone too.

A content security policy forbids every request, and every script and style but the page's own.
Answers are put in as text, never as HTML.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from imatrix_lab.core import config
from imatrix_lab.publish.preference.prompts import Texts
from imatrix_lab.report.text import visible

MARK = '<meta name="generator" content="imatrix_lab preference">'
RIGHT_TO_LEFT = frozenset(("ar", "fa", "he", "ur", "ps", "sd", "ug", "yi", "ckb", "dv"))


def render(data: Mapping[str, Any], texts: Texts) -> str:
    """Return the page for some pairs of answers; equal data give equal bytes."""
    folder = resources.files("imatrix_lab.publish.preference")
    css, script = ((folder / f"vote.{kind}").read_text("utf-8") for kind in ("css", "js"))
    language = texts.language  # English, where nobody has written the prompts' one
    direction = "rtl" if language in RIGHT_TO_LEFT else "ltr"
    shown = {**data, "texts": config.plain(texts)}
    # "<" would end the element; the separators of lines are none in JSON, but were in JavaScript
    inside = json.dumps(_visible(shown), ensure_ascii=False, sort_keys=True)
    inside = (
        inside.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    )
    policy = f"default-src 'none'; style-src '{_hash(css)}'; script-src '{_hash(script)}'"
    policy += "; img-src data:; base-uri 'none'; form-action 'none'"
    return f"""<!doctype html>
<html lang="{language}" dir="{direction}">
<head>
<meta charset="utf-8">
{MARK}
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{_escaped(texts.title)}</title>
<link rel="icon" href="data:,">
<style>{css}</style>
</head>
<body>
<main id="main"><noscript>{_escaped(texts.no_script)}</noscript></main>
<script type="application/json" id="data">{inside}</script>
<script>{script}</script>
</body>
</html>
"""


def _visible(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _visible(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_visible(v) for v in value]
    return visible(value)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
