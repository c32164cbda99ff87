"""Translations against references, by sacrebleu: chrF++ of a sentence, chrF++ and BLEU of all."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

_TOKENIZERS = {"zh": "zh", "ja": "char", "ko": "char", "th": "char"}
"""Where words are not separated by spaces, or BLEU's default would cut none."""


@dataclass(frozen=True)
class Quality:
    """Scores of a whole test set, with sacrebleu's signatures."""

    chrf: float
    bleu: float
    chrf_signature: str
    bleu_signature: str


def sentence_chrf(said: str, references: Sequence[str]) -> float:
    """Return chrF++ of one translation, from 0 to 1 (Popović, 2017)."""
    return float(_chrf().sentence_score(said, list(references)).score) / 100


def corpus(said: Sequence[str], references: Sequence[str], language: str) -> Quality:
    """Return the scores of all translations together."""
    bleu = BLEU(tokenize=_TOKENIZERS.get(language, "13a"))
    chrf = _chrf()
    streams = [list(references)]
    return Quality(
        float(chrf.corpus_score(list(said), streams).score),
        float(bleu.corpus_score(list(said), streams).score),
        str(chrf.get_signature()),
        str(bleu.get_signature()),
    )


@functools.cache
def _chrf() -> Any:
    return CHRF(word_order=2)
