"""What is in a corpus that was built, in words and rows."""

import json
from pathlib import Path
from typing import Any

from imatrix_lab.core.store import MANIFEST, Artifact, Store
from imatrix_lab.corpus import build, cleaned, documents
from imatrix_lab.corpus.mixture import parse_or_path

PAGE_CHARS = 700


def find(text: str, store: Store) -> Artifact | None:
    """Return the corpus in a folder, or the one of a language or mixture that was used last."""
    wanted = parse_or_path(text, MANIFEST)
    if isinstance(wanted, Path):
        build.from_folder(wanted)  # says what is wrong with it
        manifest = json.loads((wanted / MANIFEST).read_text(encoding="utf-8"))
        return Artifact(wanted.absolute(), manifest)
    label = wanted.label
    there = [
        a for a in store.artifacts()
        if a.path.parent.name == "corpus" and a.facts.get("language") == label
    ]  # fmt: skip
    return max(there, key=Artifact.last_used_s, default=None)


def summary(facts: dict[str, Any]) -> dict[str, str]:
    """Return the facts of a corpus by name, as text."""
    found = {
        "language": f"{facts['language_name']} ({facts['language']})",
        "calibration": f"{facts['n_tokens']:,} tokens in {facts['n_documents']:,} documents,"
        f" {facts['n_bytes']:,} bytes, {facts['n_tokens'] / max(1, facts['n_bytes']):.3f} tokens"
        " a byte",
        "held out": f"{facts['n_heldout_tokens']:,} tokens in {facts['n_heldout']:,} documents",
        "licence": str(facts["licence"]),
    }
    if facts.get("sample"):
        how = "drawn with replacement" if facts["bootstrap"] else "sharing no document"
        found["sample"] = f"{facts['sample']}, {how}"
    if removed := facts.get("overlap_removed"):
        found["overlap removed"] = (
            f"{removed['paragraphs']} paragraphs and {removed['documents']} documents that share"
            " a run of words with text held out or excluded"
        )
    return found


def share(cleaning: dict[str, Any]) -> str:
    """Return how much of a source's text is in the language, as identified."""
    found = cleaning.get("language_share")
    return "" if found is None else f"{100 * found:.1f} %"


def dropped(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return (source, step, reason, documents, lines or paragraphs, changes) of all cleaning."""
    rows = []
    for source in facts.get("sources", ()):
        for step, reasons in source["cleaning"]["steps"].items():
            for reason, n in reasons.items():
                parts = n.get("paragraphs_dropped", 0) + n.get("lines_dropped", 0)
                counts = (n.get("documents_dropped", 0), parts, n.get("changes", 0))
                words = (f"{c:,}" if c else "" for c in counts)
                rows.append((source["name"], step, reason, *words))
    return rows


def samples(found: Artifact, store: Store, n_dropped: int) -> dict[str, list[str]]:
    """Return a page of the calibration text, one of the held-out text, and what was dropped."""
    pages = {
        "calibration": [_page((found.path / build.CALIBRATION).read_text(encoding="utf-8"))],
        "held out": [
            _page(d.text) for d in documents.read(found.path / build.HELDOUT)[:1]
        ],
    }  # fmt: skip
    wanted = {f for part in found.manifest["inputs"].get("parts", ()) for f in part["calibration"]}
    lines = [
        f"[{entry['step']}: {entry['reason']}] {_page(entry['text'], 160)}"
        for artifact in store.artifacts()
        if n_dropped and artifact.fingerprint in wanted
        for entry in _entries(artifact.path / cleaned.DROPPED)
    ]
    if lines:
        step = max(1, len(lines) // max(1, n_dropped))
        pages["dropped or changed, for example"] = lines[::step][:n_dropped]
    return {title: page for title, page in pages.items() if page}


def _entries(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _page(text: str, n_chars: int = PAGE_CHARS) -> str:
    return text if len(text) <= n_chars else text[:n_chars].rstrip() + " …"
