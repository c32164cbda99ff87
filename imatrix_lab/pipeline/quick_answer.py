"""The quick answer: its numbers, and the text that they allow."""

from dataclasses import dataclass
from typing import Any

from imatrix_lab.core import config, format
from imatrix_lab.llamacpp import size_types

TOLERANCE = 0.003
"""By how much sizes may differ that are called the same."""


@dataclass(frozen=True)
class Rival:
    """The same type with another imatrix, or none; KLD from the original in nats a token.

    Attributes
    ----------
    language : of its imatrix; empty without.
    difference_nats : the tuned file's KLD minus this one's, paired by document.
    verdict : on the tuned file: better, worse, equivalent or undecided.
    type : of its tensors, where it is another.
    text : the language that was scored, where it is another than the tuned file's.
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
    type: str = ""
    text: str = ""


@dataclass(frozen=True)
class Predicted:
    """What chosen types, and the standard type, are predicted to lose in a language."""

    language_name: str
    kld_nats: float
    standard_kld_nats: float


@dataclass(frozen=True)
class Answer:
    """A tuned file against its rivals on a few held-out documents.

    Attributes
    ----------
    document_tokens : of each document, BOS included; shorter ones are whole.
    n_tokens : scored tokens with a finite score.
    signature : of the records, without the quant.
    larger : by what share the standard type is larger than a file of chosen types.
    predicted : of languages that were not scored.
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
    larger: float = 0.0
    predicted: tuple[Predicted, ...] = ()


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
    if size_types.is_size(answer.type):
        return [own, *_rows_of_size(answer)]
    return [own, *(_row(answer.language, rival) for rival in rivals)]


def explanation(answer: Answer) -> str:
    """Return what the numbers of the rows are."""
    sizes = [f"{answer.imatrix_tokens:,} tokens ({answer.language})"]
    what = answer.type
    if size_types.is_size(what):
        what = f"types chosen at the size of {what.removeprefix(size_types.PREFIX)}"
    else:
        sizes += [f"{r.imatrix_tokens:,} (English)" for r in answer.rivals if r.language]
    return (
        f"KLD of {what} from the original, in nats a token, over the first"
        f" {answer.document_tokens:,} tokens of {answer.n_documents} held-out documents of"
        f" {answer.language_name} ({answer.n_tokens:,} scored); imatrix over {', '.join(sizes)}."
    )


def _rows_of_size(answer: Answer) -> list[str]:
    """Return a row for each language: those that were scored, then predictions."""
    lines = []
    for rival in answer.rivals:
        kld = format.with_error(rival.kld_nats, rival.std_error)
        own = format.with_error(rival.kld_nats + rival.difference_nats, rival.std_error)
        where = f"{rival.text} {own}" if rival.text else f"at the size of {rival.type}"
        if not rival.text and abs(answer.larger) > TOLERANCE:
            side = "larger" if answer.larger > 0 else "smaller"
            where = f"{rival.type} is {100 * abs(answer.larger):.1f} % {side}; beside it"
        lines.append(f"{where}: {_divergence(rival)} than {rival.type}, {kld} ({_interval(rival)})")
    lines += [
        f"predicted, not measured: {x.language_name} {format.number(x.kld_nats)}"
        f" ({answer.rivals[0].type}: {format.number(x.standard_kld_nats)})"
        for x in answer.predicted
    ]
    return lines


def _divergence(rival: Rival) -> str:
    """Return how much less or more divergence a file has, no stronger than the verdict."""
    if rival.verdict not in ("better", "worse"):
        return "no clearly other divergence"
    percent = 100 / rival.kld_nats
    share = format.with_error(abs(rival.difference_nats) * percent, rival.std_error * percent)
    return f"{share} % {'less' if rival.verdict == 'better' else 'more'} divergence"


def _interval(rival: Rival) -> str:
    interval = format.interval(rival.ci95_low, rival.ci95_high, plus=True)
    return f"95 % CI {interval} nats" if interval else "too few documents for an interval"


def _row(tuned: str, rival: Rival) -> str:
    """Return one comparison, no stronger than its verdict."""
    language = "English" if rival.language else "none"
    name = f"{language} {format.with_error(rival.kld_nats, rival.std_error)}"
    if rival.std_error == 0 == rival.difference_nats:
        return f"{name} (the same as {tuned})"
    interval = _interval(rival)
    if rival.verdict not in ("better", "worse"):
        return f"{name} (no clear difference, {interval})"
    percent = 100 / rival.kld_nats
    share = format.with_error(abs(rival.difference_nats) * percent, rival.std_error * percent)
    less = "less" if rival.verdict == "better" else "more"
    return f"{name} ({tuned} {share} % {less}, {interval})"
