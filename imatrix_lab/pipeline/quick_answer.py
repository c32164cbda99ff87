"""The quick answer: its numbers, and the text that they allow."""

from dataclasses import dataclass
from typing import Any

from imatrix_lab.core import config, format


@dataclass(frozen=True)
class Rival:
    """The same type with another imatrix, or none; KLD from the original in nats a token.

    Attributes
    ----------
    language : of its imatrix; empty without.
    difference_nats : the tuned file's KLD minus this one's, paired by document.
    verdict : on the tuned file: better, worse, equivalent or undecided.
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
    """A tuned file against its rivals on a few held-out documents.

    Attributes
    ----------
    document_tokens : of each document, BOS included; shorter ones are whole.
    n_tokens : scored tokens with a finite score.
    signature : of the records, without the quant.
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


def as_json(answer: Answer) -> dict[str, Any]:
    """Return an answer as it stands in the manifest."""
    return {"sentence": sentence(answer), **config.plain(answer)}


def sentence(answer: Answer) -> str:
    """Return the whole answer on one line."""
    return f"{' · '.join(rows(answer))}. {explanation(answer)}"


def rows(answer: Answer) -> list[str]:
    """Return one row a file: the tuned one, with an English imatrix, without one."""
    error = min((r.std_error for r in answer.rivals), default=0.0)
    rivals = sorted(answer.rivals, key=lambda r: not r.language)
    own = f"{answer.language} {format.with_error(answer.kld_nats, error)}"
    return [own, *(_row(answer.language, rival) for rival in rivals)]


def explanation(answer: Answer) -> str:
    """Return what the numbers of the rows are."""
    sizes = [f"{answer.imatrix_tokens:,} tokens ({answer.language})"]
    sizes += [f"{r.imatrix_tokens:,} (English)" for r in answer.rivals if r.language]
    return (
        f"KLD of {answer.type} from the original, in nats a token, over the first"
        f" {answer.document_tokens:,} tokens of {answer.n_documents} held-out documents of"
        f" {answer.language_name} ({answer.n_tokens:,} scored); imatrix over {', '.join(sizes)}."
    )


def _row(tuned: str, rival: Rival) -> str:
    """Return one comparison, no stronger than its verdict."""
    language = "English" if rival.language else "none"
    name = f"{language} {format.with_error(rival.kld_nats, rival.std_error)}"
    if rival.std_error == 0 == rival.difference_nats:
        return f"{name} (the same as {tuned})"
    interval = format.interval(rival.ci95_low, rival.ci95_high, plus=True)
    interval = f"95 % CI {interval} nats" if interval else "too few documents for an interval"
    if rival.verdict not in ("better", "worse"):
        return f"{name} (no clear difference, {interval})"
    percent = 100 / rival.kld_nats
    share = format.with_error(abs(rival.difference_nats) * percent, rival.std_error * percent)
    less = "less" if rival.verdict == "better" else "more"
    return f"{name} ({tuned} {share} % {less}, {interval})"
