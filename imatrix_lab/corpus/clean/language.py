"""Drop text in another language: by script, then by py3langid, for paragraphs and documents.

The share of letters in the language's script comes first: it is cheap, and decides alone for most
scripts. Then every paragraph long enough is identified, by its beginning; a shorter one follows
its document, or its neighbours if both are foreign. To tell close relatives apart (Bokmål,
Nynorsk, Danish), another language must be the better guess by `MARGIN`, for a document by the
evidence of all its paragraphs together: the identifier takes one Bokmål sentence in fifty for
Danish or Nynorsk and one Nynorsk sentence in twenty for Bokmål. On parallel news, in paragraphs of
three sentences, this drops neither by mistake and finds 98 % of Bokmål in Nynorsk, 89 % of Nynorsk
in Bokmål, and all English or German.

The identifier is the library's model, evaluated here for many texts at once: py3langid walks its
automaton in Python, one text at a time.
"""

import difflib
import functools
import itertools
import unicodedata
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from py3langid.langid import MODEL_FILE, LanguageIdentifier
from scipy import sparse

from imatrix_lab.corpus.clean import scripts
from imatrix_lab.corpus.clean.report import Report
from imatrix_lab.corpus.clean.rules import Draft, Rules
from imatrix_lab.errors import UsageError

IDENTIFIED_MIN = 60
"""Latin characters; in less text Bokmål and Nynorsk are not told apart well."""
IDENTIFIED_MAX = 240
"""Latin characters of a paragraph that are read."""
SCRIPT_LETTERS_MIN = 10
"""Letters a paragraph must have for its script to count."""
MARGIN = 1.2
"""Nats for each square root of a byte by which a foreign language must be the better guess."""
TEXTS_AT_ONCE = 1024


def by_script(drafts: Sequence[Draft], rules: Rules, report: Report) -> None:
    """Drop paragraphs that are mostly in another script."""
    script_of, other = scripts.letters_of(rules.script), scripts.maybe_other(rules.script)
    for draft in drafts:
        text = draft.text
        if (rules.script == "Latn" and text.isascii()) or not other.search(text):
            continue
        classes = script_of[scripts.code_points(text)]
        sizes = np.array([len(p) + 2 for p in draft.paragraphs])
        starts = np.cumsum(sizes) - sizes
        letters = np.add.reduceat((classes > 0).astype(np.int64), starts)
        own = np.add.reduceat((classes == 2).astype(np.int64), starts)
        # a Han character says as much as three Latin ones
        weighed = own + rules.density * (letters - own)
        foreign = (letters >= SCRIPT_LETTERS_MIN) & (own < rules.script_share_min * weighed)
        if foreign.all():
            draft.empty("script of the document", report)
        else:
            draft.drop(dict.fromkeys(np.flatnonzero(foreign).tolist(), "script"), report)


def by_words(drafts: Sequence[Draft], rules: Rules, report: Report) -> None:
    """Drop documents and paragraphs that are identified as another language."""
    if not rules.labels:
        return
    _check(rules.labels)
    shortest, longest = rules.chars(IDENTIFIED_MIN), rules.chars(IDENTIFIED_MAX)
    texts = [
        {i: p[:longest] for i, p in enumerate(d.paragraphs) if len(p) >= shortest} for d in drafts
    ]
    found = [(draft, by_place) for draft, by_place in zip(drafts, texts, strict=True) if by_place]
    if not found:
        return
    flat = [text for _, by_place in found for text in by_place.values()]
    scores = identifier().scores(flat)
    n_bytes = np.array([len(text.encode()) for text in flat])
    sizes = np.array([len(by_place) for _, by_place in found])
    starts = np.cumsum(sizes) - sizes
    guesses = iter(_guesses(scores, n_bytes, rules.labels))
    wholes = _guesses(
        np.add.reduceat(scores, starts), np.add.reduceat(n_bytes, starts), rules.labels
    )
    for (draft, by_place), whole in zip(found, wholes, strict=True):
        _drop(draft, whole, {place: next(guesses) for place in by_place}, rules, report)


def _check(labels: Sequence[str]) -> None:
    known = identifier().labels
    for label in sorted(set(labels).difference(known)):
        near = " ".join(difflib.get_close_matches(label, known, 3, 0.5) or known)
        fix = f"labels = [] in the language's file, or of: {near}"
        raise UsageError(f"language identification has no label {label!r}", fix=fix)


class Guess(NamedTuple):
    """The best label for a text, and its lead over ours in nats a square root of a byte.

    The square root makes it comparable between lengths: the features of a naive Bayes model are
    not independent, so its log-odds are far too sure.
    """

    label: str
    lead: float


def _guesses(
    scores: NDArray[np.float32], n_bytes: NDArray[np.intp], ours: Sequence[str]
) -> list[Guess]:
    labels = identifier().labels
    columns = [i for i, label in enumerate(labels) if label in ours]
    leads = (scores.max(axis=1) - scores[:, columns].max(axis=1)) / np.sqrt(n_bytes)
    best = [labels[i] for i in scores.argmax(axis=1)]
    return [Guess(label, lead) for label, lead in zip(best, leads.tolist(), strict=True)]


def _drop(
    draft: Draft, whole: Guess, guesses: dict[int, Guess], rules: Rules, report: Report
) -> None:
    def is_foreign(guess: Guess) -> bool:
        return guess.label not in rules.labels and guess.lead > MARGIN

    n = len(draft.paragraphs)
    dropped = {i: f"paragraph in {g.label}" for i, g in sorted(guesses.items()) if is_foreign(g)}
    surrounded = _surrounded(n, guesses.keys(), set(dropped))
    dropped |= dict.fromkeys(sorted(surrounded), "among foreign ones")
    whole_is_foreign = is_foreign(whole)
    for i, guess in guesses.items():
        is_kept = i not in dropped and not whole_is_foreign
        report.language_bytes[guess.label, is_kept] += len(draft.paragraphs[i].encode())
    if whole_is_foreign:
        draft.empty(f"document in {whole.label}", report)
    else:
        draft.drop(dropped, report)


def _surrounded(n: int, identified: Collection[int], foreign: set[int]) -> set[int]:
    """Return the unidentified paragraphs of `n` whose identified neighbours are all foreign."""
    surrounded: set[int] = set()
    if not foreign:
        return surrounded
    for is_identified, run in itertools.groupby(range(n), identified.__contains__):
        places = list(run)
        neighbours = {places[0] - 1, places[-1] + 1}.intersection(identified)
        if neighbours and neighbours <= foreign and not is_identified:
            surrounded.update(places)
    return surrounded


class Identifier:
    """The multinomial naive Bayes model of py3langid (Lui and Baldwin, 2012).

    Its labels, one a column of the scores, may repeat (scripts of one language).
    """

    def __init__(self) -> None:
        model = LanguageIdentifier.from_model_file(MODEL_FILE)
        self.labels: tuple[str, ...] = tuple(model.nb_classes)
        self._next = np.asarray(model.tk_nextmove)
        self._row = np.asarray(model.tk_row).astype(np.intp) << 8
        self._feature = np.asarray(model.tk_output).astype(np.int32)
        self._weights = np.asarray(model.nb_ptc, np.float32)
        self._prior = np.asarray(model.nb_pc, np.float32)

    def scores(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return log-posteriors up to a constant, (texts, labels); the prior alone for no text."""
        scores = np.empty((len(texts), len(self.labels)), np.float32)
        for i in range(0, len(texts), TEXTS_AT_ONCE):
            scores[i : i + TEXTS_AT_ONCE] = self._scores(texts[i : i + TEXTS_AT_ONCE])
        return scores

    def _scores(self, texts: Sequence[str]) -> NDArray[np.float32]:
        # the model was trained on NFC, and not on capitals alone
        cased = (text.lower() if text.isupper() else text for text in texts)
        composed = (unicodedata.normalize("NFC", text) for text in cased)
        found = self._walk([text.encode("utf-8", "surrogatepass") for text in composed])
        n_features = len(self._weights)
        found.sort()
        first = np.flatnonzero(np.diff(found, prepend=-1))  # of each text's features
        counts = np.log1p(np.diff(first, append=found.size).astype(np.float32))
        rows = np.searchsorted(found[first], np.arange(len(texts) + 1) * n_features)
        columns = found[first] % n_features
        matrix = sparse.csr_matrix((counts, columns, rows), shape=(len(texts), n_features))
        product: NDArray[np.float32] = matrix @ self._weights
        return product + self._prior

    def _walk(self, texts: Sequence[bytes]) -> NDArray[np.int32]:
        """Return text x features + feature for every feature that ends at a byte of a text."""
        lengths = np.array([len(t) for t in texts])
        longest = int(lengths.max(initial=0))
        order = np.argsort(-lengths, kind="stable")
        padded = b"".join(texts[i].ljust(longest, b"\0") for i in order)
        letters = np.frombuffer(padded, np.uint8).reshape(len(texts), longest)
        letters = letters.T.astype(np.intp, order="C")
        n_left = np.searchsorted(-lengths[order], -np.arange(longest), side="left")
        features = np.full((longest, len(texts)), -1, np.int32)
        state = np.zeros(len(texts), np.intp)
        for place in range(longest):
            n = n_left[place]
            entry = self._row[state[:n]]
            entry += letters[place, :n]
            state[:n] = self._next[entry]
            features[place, :n] = self._feature[state[:n]]
        found = features >= 0
        features += (order * len(self._weights)).astype(np.int32)
        return features[found]


@functools.cache
def identifier() -> Identifier:
    """Return the model, loaded once in a process (a second, 150 MB)."""
    return Identifier()
