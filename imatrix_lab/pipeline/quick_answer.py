"""The small answer: its numbers, and the sentence that they allow."""

import math
from dataclasses import dataclass
from typing import Any

from imatrix_lab.core import config
from imatrix_lab.core.format import with_error


@dataclass(frozen=True)
class Rival:
    """The same type with another imatrix, or none; KLD from the original in nats a token.

    Attributes
    ----------
    language : of its imatrix; empty without.
    difference_nats : of the tuned file, less this one's, paired by document; 95 % interval.
    verdict : of the tuned file: better, worse, equivalent or undecided.
    """

    language: str
    imatrix_tokens: int
    imatrix_sha256: str
    sha256: str
    kld_nats: float
    difference_nats: float
    std_error: float
    ci95_low: float
    ci95_high: float
    p_holm: float
    method: str
    verdict: str


@dataclass(frozen=True)
class Answer:
    """What a few documents say of a tuned file.

    Attributes
    ----------
    document_tokens : of each document, BOS included; shorter ones are whole.
    n_tokens : that were scored, and are finite.
    signature : of the records, less the quant.
    """

    type: str
    language: str
    language_name: str
    imatrix_tokens: int
    n_documents: int
    document_tokens: int
    n_tokens: int
    kld_nats: float
    rivals: tuple[Rival, ...]
    signature: dict[str, Any]


def as_json(found: Answer) -> dict[str, Any]:
    """Return an answer as it stands in the manifest."""
    return {"sentence": sentence(found), **config.plain(found)}


def sentence(found: Answer) -> str:
    """Return what the numbers say, in one line and no stronger."""
    error = min((r.std_error for r in found.rivals), default=0.0)
    compared = ", and ".join(_against(r) for r in found.rivals)
    return (
        f"On the first {found.document_tokens:,} tokens of {found.n_documents} held-out documents"
        f" of {found.language_name} ({found.n_tokens:,} scored), {found.type} with the"
        f" {found.language} imatrix of {found.imatrix_tokens:,} tokens diverges from the original"
        f" by {with_error(found.kld_nats, error)} nats a token: {compared}."
    )


def _against(rival: Rival) -> str:
    """Return one comparison in words, by its verdict."""
    other = "without one"
    if rival.language:
        other = f"with an English one of {rival.imatrix_tokens:,} tokens"
    low, high = sorted((rival.ci95_low, rival.ci95_high), key=abs)
    if rival.std_error == 0 == rival.difference_nats:
        return f"the same as {other}"
    theirs = with_error(rival.kld_nats, rival.std_error)
    if rival.verdict in ("better", "worse"):
        more = "less" if rival.verdict == "better" else "more"
        percent = 100 / rival.kld_nats
        share = with_error(abs(rival.difference_nats) * percent, rival.std_error * percent)
        sure = f"95 % sure: {_size(low, rival)} to {_size(high, rival)} nats {more}"
        return f"{share} % {more} than {other} ({theirs}; {sure})"
    ends = [f"{_size(x, rival)} {'less' if x < 0 else 'more'}"
            for x in (rival.ci95_low, rival.ci95_high)]  # fmt: skip
    sure = f"95 % sure: between {' and '.join(ends)}, in nats"
    if not (math.isfinite(low) and math.isfinite(high)):
        sure = "too few documents for an interval"
    return f"which cannot be told from that {other} ({theirs}; {sure})"


def _size(nats: float, rival: Rival) -> str:
    return with_error(abs(nats), rival.std_error)
