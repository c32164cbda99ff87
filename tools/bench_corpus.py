"""How fast text is cleaned: documents and megabytes a second by step and language, and memory.

    make bench-corpus
    python tools/bench_corpus.py --megabytes 50 --languages nb ml
    python tools/bench_corpus.py --gigabytes 10 --languages en     one stream of 10 GB, one worker

Documents are made of the sentences of real text in random order, so that the stream can have any
length and yet does not repeat itself: NTREX-128 where IMATRIX_LAB_SHARED_DATA has it, else the
pinned dataset-build wheel. One paragraph in ten is made dirty, each time another way.
Seconds are of the processor, so that other work on the machine disturbs less; "all together" and
workers are by the clock.
"""

import argparse
import os
import random
import re
import resource
import sys
import tempfile
import time
import tomllib
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from imatrix_lab.core import paths, pypi
from imatrix_lab.corpus.clean import BATCH_CHARS, STEPS, apply, clean
from imatrix_lab.corpus.clean.duplicates import Duplicates, hashes
from imatrix_lab.corpus.clean.report import Report
from imatrix_lab.corpus.clean.rules import Draft, Rules
from imatrix_lab.corpus.documents import batches
from imatrix_lab.types import Document

NTREX = {"en": "eng", "nb": "nob", "nn": "nno", "de": "deu", "ml": "mal", "hi": "hin", "ja": "jpn",
         "sw": "swa"}  # fmt: skip
WHEEL = {"en": "eng", "nb": "nor", "de": "deu", "hi": "hin", "ja": "jpn", "sw": "swa"}
LABELS = {"nb": "no"}
SCRIPTS = {"ml": "Mlym", "hi": "Deva", "ja": "Jpan"}
UNSPACED = {"ja"}
DIRT = (
    lambda s: f'<p class="x">{s}&nbsp;</p>',
    lambda s: f"**{s}** [[Main page|see]] {{{{cite}}}}",
    lambda s: s.encode().decode("latin-1"),
    lambda s: f"Read more | Share | Print\n{s}",
    lambda s: f"{s} name.of.someone@company.com, +47 22 85 50 {random.Random(s).randrange(99):02d}",
    lambda s: "All of this paragraph is in English, whatever the text around it may be in. " * 2,
    lambda s: f"{s}\u200b\ufeff {s[:40]}\u00ad",
)


def sentences(language: str, wheel_folder: Path) -> list[str]:
    """Return the sentences of a language's real text."""
    shared = Path(os.environ.get("IMATRIX_LAB_SHARED_DATA", "")) / "ntrex"
    path = shared / f"{NTREX[language]}.txt"
    if path.exists():
        text = path.read_text(encoding="utf-8")
    else:
        text = from_wheel(WHEEL[language], wheel_folder)
    pieces = (s.strip() for s in re.split(r"\n+|(?<=[.!?।。])(?:\s+|(?<=。))", text))
    return [s for s in pieces if len(s) >= 10]


def from_wheel(code: str, folder: Path) -> str:
    """Return the text of the pinned dataset-build wheel."""
    pinned = tomllib.loads((paths.data_dir("corpora") / "sources.toml").read_text("utf-8"))
    source = pinned["dataset-build"]
    path = pypi.download("dataset-build", source["version"], source["sha256"], folder)
    with zipfile.ZipFile(path) as archive:
        return archive.read(f"dataset_build/data/{code}/{code}.txt").decode("utf-8-sig")


def generated(language: str, pool: list[str], n_bytes: int) -> Iterator[Document]:
    """Yield documents of six paragraphs of four sentences, some `n_bytes` in all."""
    rng = random.Random(1)
    joint = "" if language in UNSPACED else " "
    done = n = 0
    while done < n_bytes:
        paragraphs = [joint.join(rng.choices(pool, k=4)) for _ in range(6)]
        for i, paragraph in enumerate(paragraphs):
            if rng.random() < 0.1:
                paragraphs[i] = rng.choice(DIRT)(paragraph)
        text = "\n\n".join(paragraphs)
        yield Document(f"{language}/{n:07d}", text, "bench", "none")
        n, done = n + 1, done + len(text.encode())


def rules_of(language: str) -> Rules:
    """Return a language's rules."""
    return Rules(SCRIPTS.get(language, "Latn"), (LABELS.get(language, language),))


def by_step(documents: list[Document], rules: Rules) -> dict[str, float]:
    """Return the processor seconds of each step over documents."""
    seconds: dict[str, float] = defaultdict(float)
    report, seen = Report(labels=rules.labels), Duplicates(rules)
    for batch in batches(documents, BATCH_CHARS, lambda d: len(d.text)):
        drafts = [Draft.of(document) for document in batch]
        for report.step, step in STEPS:
            began = time.process_time()
            apply(step, drafts, rules, report)
            drafts = [draft for draft in drafts if draft.paragraphs]
            seconds[report.step] += time.process_time() - began
        began = time.process_time()
        for draft, own in zip(drafts, hashes(drafts), strict=True):
            seen.drop(draft, own, report)
        seconds["duplicates"] += time.process_time() - began
    return seconds


def memory_mb(workers: int) -> tuple[float, float]:
    """Return the peak memory of this process and of the largest worker, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    own, child = (
        resource.getrusage(who).ru_maxrss * unit / 1e6
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own, child if workers > 1 else 0.0


def processor_seconds() -> float:
    """Return what this process and its ended children used."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def all_together(language: str, documents: Iterator[Document], workers: int) -> None:
    """Print the rate of the whole of cleaning, by the clock and by the processor."""
    report = Report()
    began, began_cpu = time.monotonic(), processor_seconds()
    for _ in clean(documents, rules_of(language), report, workers):
        pass
    seconds, used = time.monotonic() - began, processor_seconds() - began_cpu
    peak, worker = memory_mb(workers)
    megabytes = report.bytes_in / 1e6
    print(
        f"  {language}  {workers} worker{'s' * (workers > 1)}: {megabytes / seconds:5.2f} MB/s,"
        f" {report.documents_in / seconds:6.0f} documents/s by the clock; {megabytes / used:5.2f}"
        f" MB a processor second; memory at most {peak:.0f} MB"
        + (f" and {worker:.0f} MB a worker" if worker else "")
        + f"; {report.bytes_out / report.bytes_in:.1%} kept"
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--languages", nargs="+", default=["en", "nb", "ml", "ja"], choices=NTREX)
    parser.add_argument("--megabytes", type=float, default=10)
    parser.add_argument("--gigabytes", type=float, help="one stream of this size, one worker")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        pools = {language: sentences(language, Path(name)) for language in arguments.languages}
    if arguments.gigabytes:
        for language, pool in pools.items():
            all_together(language, generated(language, pool, int(arguments.gigabytes * 1e9)), 1)
        return
    total: dict[str, float] = defaultdict(float)
    for language, pool in pools.items():
        documents = list(generated(language, pool, int(arguments.megabytes * 1e6)))
        n_bytes = sum(len(d.text.encode()) for d in documents)
        by_step(documents[:5], rules_of(language))  # loads the model and the tables
        seconds = by_step(documents, rules_of(language))
        for step, s in seconds.items():
            total[step] += s / n_bytes
        print(f"{language}: {len(documents)} documents, {n_bytes / 1e6:.1f} MB")
        for step, s in seconds.items():
            print(
                f"  {step:12} {n_bytes / s / 1e6:8.1f} MB/s {len(documents) / s:9.0f} documents/s"
            )
        print(f"  {'all steps':12} {n_bytes / sum(seconds.values()) / 1e6:8.1f} MB/s, one core")
        for workers in (1, 2):
            all_together(language, iter(documents), workers)
    slowest = max(total, key=lambda step: total[step])
    share = total[slowest] / sum(total.values())
    print(f"slowest step: {slowest}, {share:.0%} of the time over these languages")


if __name__ == "__main__":
    main()
