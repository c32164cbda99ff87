"""Translations against references, by sacrebleu: chrF++ of a sentence, chrF++ and BLEU of all."""

from collections.abc import Sequence
from dataclasses import dataclass

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

_TOKENIZERS = {"zh": "zh", "ja": "char", "ko": "char", "th": "char"}
"""Where words are not separated by spaces, or BLEU's default would cut none."""
_CHRF = CHRF(word_order=2)


@dataclass(frozen=True)
class Quality:
    """Scores of a whole test set, with sacrebleu's signatures."""

    chrf: float
    bleu: float
    chrf_signature: str
    bleu_signature: str


def sentence_chrf(text: str, references: Sequence[str]) -> float:
    """Return chrF++ of one translation, from 0 to 1 (Popović, 2017)."""
    return float(_CHRF.sentence_score(text, list(references)).score) / 100


def corpus(texts: Sequence[str], references: Sequence[str], language: str) -> Quality:
    """Return the scores of all translations together."""
    bleu = BLEU(tokenize=_TOKENIZERS.get(language, "13a"))
    metrics, streams = (_CHRF, bleu), [list(references)]
    chrf, bleu_score = (float(m.corpus_score(list(texts), streams).score) for m in metrics)
    return Quality(chrf, bleu_score, *(str(m.get_signature()) for m in metrics))
