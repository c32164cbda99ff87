"""Which language: by script, then by py3langid, for paragraphs and for documents.

The share of letters in the language's script is looked at first: it is cheap, and decides alone
for most scripts. Then every paragraph long enough is identified, by its beginning; one too short
follows its document, or its neighbours where both of them are foreign. Close relatives (Bokmål,
Nynorsk, Danish) are told apart where there is enough text: a paragraph of a document that is in
the language stays unless another language is the better guess by `MARGIN`, since the identifier
takes one Bokmål paragraph in a hundred for Danish; a document is judged without that grace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from imatrix_lab.corpus.clean import scripts
from imatrix_lab.corpus.clean.identify import identifier
from imatrix_lab.corpus.clean.report import DOCUMENTS, PARAGRAPHS, Report
from imatrix_lab.corpus.clean.rules import Draft, Rules

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


IDENTIFIED_MIN = 60
"""Latin characters; below them Bokmål and Nynorsk are not told apart well."""
IDENTIFIED_MAX = 240
"""Latin characters of a paragraph that are read."""
SCRIPT_LETTERS_MIN = 10
"""Letters a paragraph must have for its script to count."""
MARGIN = 0.8
"""Nats for each square root of a byte by which a foreign language must be the better guess."""
SHARE_MIN = 0.5
"""Of a document's identified text, what must be in the language."""


def by_script(drafts: Sequence[Draft], rules: Rules, report: Report) -> None:
    """Drop paragraphs that are mostly in another script."""
    import numpy as np

    letters_of = scripts.letters_of(rules.script)
    for draft in drafts:
        text = draft.text
        if rules.script == "Latn" and text.isascii():
            continue
        kind = letters_of[scripts.code_points(text)]
        ends = np.cumsum([len(p) + 2 for p in draft.paragraphs])
        starts = ends - [len(p) + 2 for p in draft.paragraphs]
        letters = np.add.reduceat((kind > 0).astype(np.int64), starts) if ends.size else ends
        own = np.add.reduceat((kind == 2).astype(np.int64), starts) if ends.size else ends
        foreign = (letters >= SCRIPT_LETTERS_MIN) & (own < rules.script_share_min * letters)
        if foreign.all() and foreign.size:
            report.count("script of the document", DOCUMENTS, draft.document.id, text)
            draft.paragraphs = []
        elif foreign.any():
            for i in np.flatnonzero(foreign):
                report.count("script", PARAGRAPHS, draft.document.id, draft.paragraphs[i])
            draft.paragraphs = [
                p for p, out in zip(draft.paragraphs, foreign, strict=True) if not out
            ]


def by_words(drafts: Sequence[Draft], rules: Rules, report: Report) -> None:
    """Drop documents and paragraphs that are identified as another language."""
    if not rules.labels:
        return
    shortest, longest = rules.chars(IDENTIFIED_MIN), rules.chars(IDENTIFIED_MAX)
    places = [
        (d, i) for d, draft in enumerate(drafts)
        for i, p in enumerate(draft.paragraphs) if len(p) >= shortest
    ]  # fmt: skip
    texts = [drafts[d].paragraphs[i][:longest] for d, i in places]
    labels, lead = _best(texts, rules.labels)
    by_draft: list[dict[int, tuple[str, float]]] = [{} for _ in drafts]
    for (d, i), label, ahead in zip(places, labels, lead, strict=True):
        by_draft[d][i] = label, ahead
    for draft, found in zip(drafts, by_draft, strict=True):
        _judge(draft, found, rules, report)


def _best(texts: Sequence[str], ours: Sequence[str]) -> tuple[list[str], list[float]]:
    """Return each text's best label, and how far the best is ahead of ours.

    The lead is in nats a square root of a byte, which makes it comparable between lengths:
    the features of a naive Bayes model are not independent, so its log-odds are far too sure.
    """
    import numpy as np

    model = identifier()
    if unknown := set(ours) - set(model.labels):
        raise ValueError(f"py3langid has no label {sorted(unknown)}")
    scores = model.scores(texts)
    best = scores.argmax(axis=1)
    columns = [i for i, label in enumerate(model.labels) if label in ours]
    n_bytes = np.array([len(t.encode()) for t in texts])
    lead: NDArray[np.float64] = (scores.max(axis=1) - scores[:, columns].max(axis=1)) / np.sqrt(
        np.maximum(n_bytes, 1)
    )
    return [model.labels[i] for i in best], lead.tolist()


def _judge(draft: Draft, found: dict[int, tuple[str, float]], rules: Rules, report: Report) -> None:
    """Drop a draft, or its foreign paragraphs. `found`: label and lead of identified ones."""
    size = {i: len(draft.paragraphs[i].encode()) for i in found}
    ours = sum(size[i] for i, (label, _) in found.items() if label in rules.labels)
    if found and ours < SHARE_MIN * sum(size.values()):
        largest = max(found, key=lambda i: size[i])
        report.count(f"document in {found[largest][0]}", DOCUMENTS, draft.document.id, draft.text)
        keep = []
    else:
        out = {
            i for i, (label, lead) in found.items() if label not in rules.labels and lead > MARGIN
        }
        keep = [i for i in range(len(draft.paragraphs)) if i not in out]
        for i in sorted(out):
            report.count(
                f"paragraph in {found[i][0]}", PARAGRAPHS, draft.document.id,
                draft.paragraphs[i],
            )  # fmt: skip
        for i in sorted(_surrounded(len(draft.paragraphs), found, out)):
            keep.remove(i)
            report.count("among foreign ones", PARAGRAPHS, draft.document.id, draft.paragraphs[i])
    kept = set(keep)
    for i, (label, _) in found.items():
        report.language_bytes[label, i in kept] += size[i]
    draft.paragraphs = [draft.paragraphs[i] for i in keep]


def _surrounded(n: int, found: dict[int, tuple[str, float]], out: set[int]) -> set[int]:
    """Return the paragraphs too short to identify whose identified neighbours are all foreign."""
    if not out:
        return set()
    inside: set[int] = set()
    run: list[int] = []
    foreign_before = True  # nothing before is no neighbour
    for i in range(n):
        if i not in found:
            run.append(i)
            continue
        if foreign_before and i in out:
            inside.update(run)
        run, foreign_before = [], i in out
    if foreign_before:
        inside.update(run)
    return inside
