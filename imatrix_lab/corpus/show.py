"""What is in a corpus that was built, as text and table rows."""

from pathlib import Path
from typing import Any

from imatrix_lab.core.files import from_json
from imatrix_lab.core.format import count
from imatrix_lab.core.manifest import MANIFEST
from imatrix_lab.core.store import Artifact, Store
from imatrix_lab.corpus import build, cleaned, documents
from imatrix_lab.corpus.mixture import parse_or_path

PAGE_CHARS = 700
SOURCE_COLUMNS = ("source", "version", "licence", "calibrated on", "held out", "language share")
DROPPED_COLUMNS = ("source", "step", "reason", "documents", "paragraphs", "changes")


def find(text: str, store: Store) -> Artifact | None:
    """Return the corpus in a folder, or the one of a language or mixture that was used last."""
    named = parse_or_path(text, MANIFEST)
    if isinstance(named, Path):
        build.from_folder(named)  # raises if it is not a corpus
        manifest = from_json((named / MANIFEST).read_text(encoding="utf-8"))
        return Artifact(named.absolute(), manifest)
    corpora = [a for a in store.artifacts() if a.path.parent.name == "corpus"]
    matches = (a for a in corpora if a.facts.get("language") == named.label)
    return max(matches, key=Artifact.last_used_s, default=None)


def summary(facts: dict[str, Any]) -> dict[str, str]:
    """Return the facts of a corpus by name, as text."""
    rows = {
        "language": f"{facts['language_name']} ({facts['language']})",
        "calibration": f"{facts['n_tokens']:,} tokens in {facts['n_documents']:,} documents,"
        f" {facts['n_bytes']:,} bytes, {facts['n_tokens'] / max(1, facts['n_bytes']):.3f} tokens"
        " a byte",
        "held out": f"{facts['n_heldout_tokens']:,} tokens in {facts['n_heldout']:,} documents",
        "licence": str(facts["licence"]),
    }
    if facts.get("sample"):
        how = "drawn with replacement" if facts["bootstrap"] else "sharing no document"
        rows["sample"] = f"{facts['sample']}, {how}"
    if removed := facts.get("overlap_removed"):
        rows["overlap removed"] = (
            f"{removed['paragraphs']} paragraphs and {removed['documents']} documents that share"
            " a run of words with text held out or excluded"
        )
    return rows


def sources(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a row of `SOURCE_COLUMNS` for each source."""
    rows: list[tuple[str, ...]] = []
    for s in facts.get("sources", ()):
        share = s["cleaning"].get("language_share")
        percent = "" if share is None else f"{100 * share:.1f} %"
        n_used = f"{s['n_used']} documents"
        version = s["version"][:16]
        rows.append((s["name"], version, s["licence"], n_used, str(s["n_heldout"]), percent))
    return rows


def dropped(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a row of `DROPPED_COLUMNS` for each source, step and reason; lines are paragraphs."""
    rows = []
    for source in facts.get("sources", ()):
        for step, reasons in source["cleaning"]["steps"].items():
            for reason, n in reasons.items():
                n_parts = n.get("paragraphs_dropped", 0) + n.get("lines_dropped", 0)
                counts = (n.get("documents_dropped", 0), n_parts, n.get("changes", 0))
                rows.append((source["name"], step, reason, *map(count, counts)))
    return rows


def samples(corpus: Artifact, store: Store, n_dropped: int) -> dict[str, list[str]]:
    """Return a page of the calibration text, one of the held-out text, and what was dropped."""
    calibration = (corpus.path / build.CALIBRATION).read_text(encoding="utf-8")
    heldout = documents.read(corpus.path / build.HELDOUT)
    pages = {"calibration": [_page(calibration)], "held out": [_page(d.text) for d in heldout[:1]]}
    parts = corpus.manifest["inputs"].get("parts", ())
    fingerprints = {fingerprint for part in parts for fingerprint in part["calibration"]}
    lines = [
        f"[{entry['step']}: {entry['reason']}] {_page(entry['text'], 160)}"
        for artifact in store.artifacts()
        if n_dropped and artifact.fingerprint in fingerprints
        for _, entry in documents.json_lines(artifact.path / cleaned.DROPPED)
    ]
    if lines:
        step = max(1, len(lines) // max(1, n_dropped))
        pages["dropped or changed, for example"] = lines[::step][:n_dropped]
    return {title: page for title, page in pages.items() if page}


def _page(text: str, n_chars: int = PAGE_CHARS) -> str:
    return text if len(text) <= n_chars else text[:n_chars].rstrip() + " …"
