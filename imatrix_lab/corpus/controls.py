"""Texts that show what an imatrix owes to words, and what to order or to nothing at all."""

import random
from collections.abc import Iterator

from imatrix_lab.corpus.clean import scripts
from imatrix_lab.corpus.languages import SCRIPT_PARTS
from imatrix_lab.corpus.packing import BLOCK_TOKENS
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.types import Document


def shuffled(document: Document, seed: int, script: str) -> Document:
    """Return a document with its words in random order, its characters where words have no spaces.

    The words, and so nearly all tokens, are the same; what they say is gone.
    """
    spaces = SCRIPT_PARTS.get(script, (script,))[0] not in scripts.UNSPACED
    rng = random.Random(f"{seed} {document.id}")
    units = document.text.split() if spaces else [c for c in document.text if not c.isspace()]
    rng.shuffle(units)
    text = (" " if spaces else "").join(units)
    return Document(f"shuffled/{document.id}", text, document.source, document.licence)


def random_tokens(vocabulary: Vocabulary, n_tokens: int, seed: int) -> Iterator[Document]:
    """Yield documents of tokens drawn evenly from the vocabulary, about `n_tokens` in all.

    Only tokens that are text by themselves are drawn: no control tokens, no bytes of a
    character. Written out and read again they may merge otherwise, so the count is near.
    """
    rng = random.Random(f"{seed} {vocabulary.n_tokens()}")
    made = 0
    while made < n_tokens:
        words: list[str] = []
        while len(words) < BLOCK_TOKENS:
            if word := vocabulary.word(rng.randrange(vocabulary.n_tokens())):
                words.append(word)
        text = "".join(words).replace("\r", " ").strip()
        yield Document(
            f"random-tokens/{made // BLOCK_TOKENS:06d}", text, "random-tokens", "CC0-1.0"
        )
        made += len(words)
