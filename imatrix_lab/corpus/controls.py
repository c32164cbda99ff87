"""Control texts: the same words in random order, and random tokens.

They show how much of an imatrix's effect is due to the words of a text, to their order, or to
no text at all.
"""

import random
from collections.abc import Iterator

from imatrix_lab.corpus.clean import scripts
from imatrix_lab.corpus.languages import SCRIPT_PARTS
from imatrix_lab.corpus.packing import BLOCK_TOKENS
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.types import Document


def shuffled(document: Document, seed: int, script: str) -> Document:
    """Return a document with its words in random order; its characters in unspaced scripts."""
    spaces = SCRIPT_PARTS.get(script, (script,))[0] not in scripts.UNSPACED
    rng = random.Random(f"{seed} {document.id}")
    units = document.text.split() if spaces else [c for c in document.text if not c.isspace()]
    rng.shuffle(units)
    text = (" " if spaces else "").join(units)
    return Document(f"shuffled/{document.id}", text, document.source, document.licence)


def random_tokens(vocabulary: Vocabulary, n_tokens: int, seed: int) -> Iterator[Document]:
    """Yield documents of tokens drawn evenly from the vocabulary's that are text by themselves.

    Tokenized again they may merge in other ways, so the count is approximate.
    """
    rng = random.Random(f"{seed} {vocabulary.n_tokens()}")
    n_drawn = 0
    while n_drawn < n_tokens:
        words: list[str] = []
        while len(words) < BLOCK_TOKENS:
            if word := vocabulary.word(rng.randrange(vocabulary.n_tokens())):
                words.append(word)
        text = "".join(words).replace("\r", " ").strip()
        document_id = f"random-tokens/{n_drawn // BLOCK_TOKENS:06d}"
        yield Document(document_id, text, "random-tokens", "CC0-1.0")
        n_drawn += len(words)
