"""A language and text in it, made up."""

import json
import random

from imatrix_lab.corpus.sources import files

LANGUAGE = """
code = "{code}"
name = "{name}"
native_name = "{name}"
script = "Latn"
aliases = []
labels = []
source = []
"""


def words(rng, n):
    return ["".join(rng.choices("etaonrisldhmkgv", k=rng.randint(2, 9))) for _ in range(n)]


def prose(rng):
    """A document of three paragraphs of sentences."""
    sentences = [" ".join(words(rng, rng.randint(6, 14))).capitalize() + "." for _ in range(9)]
    return "\n\n".join(" ".join(sentences[i : i + 3]) for i in (0, 3, 6))


def add(data, code, name, n_documents=60, n_chars=None):
    """Add a language with a source of so many documents to the user's folder of data."""
    (data / "corpora").mkdir(parents=True, exist_ok=True)
    (data / "corpora" / f"{code}.toml").write_text(LANGUAGE.format(code=code, name=name))
    rng = random.Random(code)
    texts = [prose(rng)[:n_chars] for _ in range(n_documents)]
    lines = [json.dumps({"id": f"{i:03d}", "text": text}) for i, text in enumerate(texts)]
    path = data / f"{code}.jsonl"
    path.write_text("\n".join(lines))
    files.add([path], code, "made", "CC0-1.0")
