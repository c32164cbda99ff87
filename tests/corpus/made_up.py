"""A language and text in it, made up."""

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
