"""Measure how much text each language's offline sources hold after cleaning.

    python tools/corpora_table.py nb de ja          # a table on stdout
    python tools/corpora_table.py --write      # all; also into docs/corpora.md and corpora/*.toml

Tokens are the demo model's. Sources on the Hub are left out: they hold more than any budget.
"""

import argparse
from pathlib import Path

from imatrix_lab.core import paths
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.corpus import cleaned, languages
from imatrix_lab.corpus.languages import Language, Source
from imatrix_lab.corpus.sources import KINDS
from imatrix_lab.errors import ImatrixLabError
from imatrix_lab.llamacpp.toolchain import default_backend
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.pipeline import tune
from imatrix_lab.types import TOKENS_DEFAULT, ComputeOptions, Request

ROOT = Path(__file__).parent.parent
MARKERS = ("<!-- offline sources: begin -->", "<!-- offline sources: end -->")
LIMIT_TOKENS = 1_000_000
HEAD = (
    "| language | source | licence | tokens | tokens a byte | in the language | dropped |\n"
    "|---|---|---|---:|---:|---:|---|\n"
)


def main() -> None:
    """Print the table, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("languages", nargs="*")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    session = Session(Store(), Silent())
    request = Request("nb", (), "demo", 0, Path(), ComputeOptions(default_backend()))
    tools, model = tune.prepare(request, session)
    rows = []
    with Vocabulary(tools, model.path) as vocabulary:
        for code in arguments.languages or languages.load_all():
            language = languages.get(code)
            measured = {}
            for source in language.sources:
                if source.kind in {"hub", "files"}:
                    continue
                row, n_tokens = measure(language, source, vocabulary, session)
                measured[source.name] = n_tokens
                rows.append(row)
                print(row, flush=True)
            if arguments.write:
                note_tokens(language, measured)
    if arguments.write:
        path = ROOT / "docs" / "corpora.md"
        before, rest = path.read_text().split(MARKERS[0])
        after = rest.split(MARKERS[1])[1]
        table = HEAD + "".join(row + "\n" for row in rows)
        path.write_text(f"{before}{MARKERS[0]}\n{summary()}\n{table}{MARKERS[1]}{after}")


def summary() -> str:
    """Return which languages have the default budget, and what the others have."""
    natural = [n for n in languages.load_all().values() if n.script != "Zyyy"]
    n_tokens = {n.code: sum(s.tokens for s in n.sources if not s.heldout) for n in natural}
    enough = [code for code, n in n_tokens.items() if n >= TOKENS_DEFAULT]
    short = sorted(n_tokens.keys() - set(enough), key=lambda code: -n_tokens[code])
    return (
        f"{len(enough)} languages have {TOKENS_DEFAULT:,} tokens or more to calibrate on without"
        f" the Hub: {' '.join(enough)}. The others have less:"
        f" {', '.join(f'{code} {n_tokens[code]:,}' for code in short)}.\n"
    )


def measure(
    language: Language, source: Source, vocabulary: Vocabulary, session: Session
) -> tuple[str, int]:
    """Return a source's row, and its tokens."""
    limit = cleaned.limit_bytes(LIMIT_TOKENS)
    try:
        pinned = KINDS[source.kind].reach(source, session)
        pool = cleaned.build(language, pinned, limit, 1, session)
    except ImatrixLabError as error:
        return f"| {language.code} | {source.name} | {source.licence} | – | | | {error.what} |", 0
    texts = [d.text for d in pool.documents()]
    n_tokens = sum(map(vocabulary.count, texts))
    n_bytes = sum(len(t.encode()) for t in texts)
    report = pool.artifact.facts["cleaning"]
    share = report["language_share"]
    more = "" if pool.artifact.facts["whole"] else " and more"
    heldout = " (held out)" if source.heldout else ""
    return (
        f"| {language.code} | {source.name}{heldout} | {source.licence} | {n_tokens:,}{more}"
        f" | {n_tokens / n_bytes:.3f} | {'' if share is None else f'{100 * share:.1f} %'}"
        f" | {'; '.join(cleaned.reasons(report)[:4]) or 'nothing'} |"
    ), n_tokens


def note_tokens(language: Language, measured: dict[str, int]) -> None:
    """Write the tokens of each source into the language's file, to two digits."""
    path = paths.data_dir("corpora") / f"{language.code}.toml"
    head, *blocks = path.read_text(encoding="utf-8").split("[[source]]\n")
    written = [head]
    for block, source in zip(blocks, language.sources, strict=False):
        lines = [line for line in block.rstrip("\n").split("\n") if not line.startswith("tokens =")]
        if not (n_tokens := measured.get(source.name, 0)):
            n_tokens = source.tokens  # what cannot be measured here keeps its number
        if n_tokens:
            digits = 10 ** max(0, len(str(n_tokens)) - 2)
            lines.append(f"tokens = {n_tokens // digits * digits:_}")
        written.append("\n".join(lines) + "\n\n")
    path.write_text("[[source]]\n".join(written).rstrip("\n") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
