"""Texts, requests and jobs for tests of scoring."""

import contextlib
import dataclasses
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.llamacpp.native import Interruptible
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models import resolve
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.pipeline import score as evaluate
from imatrix_lab.records import parquet
from imatrix_lab.score import text as texts
from imatrix_lab.score.engine import Engine, Settings
from imatrix_lab.score.job import Job
from imatrix_lab.score.kernel import Kernel
from imatrix_lab.score.text import Text
from imatrix_lab.score.windows import Protocol, Step
from imatrix_lab.types import ComputeOptions, Document, Model, ScoreRequest

LETTERS = "etaonrisldhcumfpgwybvkxjqzåøæ.,"


class Recorder(Silent):
    """A `Progress` that remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def prose(n_chars: int, seed: int = 0) -> str:
    """Return made-up words of `n_chars` characters in all."""
    rng = random.Random(seed)
    words: list[str] = []
    size = 0
    while size <= n_chars:
        words.append("".join(rng.choices(LETTERS, k=rng.randint(2, 8))))
        size += len(words[-1]) + 1
    return " ".join(words)[:n_chars]


def documents(sizes: Sequence[int], seed: int = 0) -> tuple[Document, ...]:
    """Return a document of made-up words for each size in characters."""
    return tuple(
        Document(f"doc/{i}", prose(n, 1000 * seed + i), "made up", "CC0-1.0")
        for i, n in enumerate(sizes)
    )


def jsonl(path: Path, texts: Sequence[Document]) -> Path:
    """Write documents, one a line."""
    lines = [json.dumps({"id": d.id, "text": d.text}, ensure_ascii=False) + "\n" for d in texts]
    path.write_bytes("".join(lines).encode())
    return path


def request(
    reference: Path, quants: Sequence[Path], texts: dict[str, Path], out: Path, **rest: Any
) -> ScoreRequest:
    """Return a request with one thread."""
    names = [f.name for f in dataclasses.fields(ComputeOptions) if f.name in rest]
    compute = {"backend": "cpu", "threads": 1, **{name: rest.pop(name) for name in names}}
    return ScoreRequest(
        str(reference),
        tuple(str(q) for q in quants),
        tuple(texts.items()),
        out,
        ComputeOptions(**compute),
        **rest,
    )


def score(store: Store, *args: Any, progress: Silent | None = None, **rest: Any) -> list[Path]:
    """Score what `request` would ask for."""
    return evaluate.score(request(*args, **rest), Session(store, progress or Silent()))


def load(path: Path, store: Store) -> Model:
    """Return a model file as the engine takes it."""
    return resolve.resolve(str(path), Session(store, Silent()))


def settings(n_ctx: int = 128, **rest: Any) -> Settings:
    """Return settings for one thread, a whole window a decode."""
    asked = {"threads": 1, "n_batch": n_ctx, "n_rows": n_ctx, "sequences_max": 64}
    return Settings(n_ctx=n_ctx, **{**asked, "gpu_layers": 0, **rest})


def job(
    tools: Toolchain,
    kernel: Kernel,
    reference: Model,
    content: Sequence[Document],
    protocol: Protocol,
    **rest: Any,
) -> Job:
    """Return a job on documents."""
    chosen = settings(protocol.n_ctx, **rest)
    text = Text("nb", tuple(content))
    with Vocabulary(tools, reference.path) as vocabulary:
        plan = texts.plan(text, vocabulary, protocol, chosen.sequences_max)
    return Job(tools, kernel, reference, text, plan, protocol, chosen)


@contextlib.contextmanager
def engine(asked: Job, model: Model) -> Iterator[Engine]:
    """Open a model as a job would."""
    with Engine(asked.tools, asked.kernel, model, asked.settings, Interruptible()) as opened:
        yield opened


def logits(asked: Job, model: Model) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits of every scored token, (n, vocabulary), and the tokens."""
    rows, targets = [], []
    with engine(asked, model) as opened:
        for batch in range(len(asked.plan.batches)):
            opened.begin()
            for step in asked.steps(batch):
                rows.append(opened.decode(step).copy())
                targets.append(step.targets)
    return np.concatenate(rows), np.concatenate(targets)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities in float64."""
    z = logits.astype(np.float64)
    z = z - z.max(axis=1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(axis=1, keepdims=True)))


def records(path: Path) -> dict[str, np.ndarray]:
    """Return the columns of a file of records, words spelt out."""
    table = parquet.read(path)
    return {
        name: np.array(column.names)[column.codes] if isinstance(column, parquet.Coded) else column
        for name, column in table.columns.items()
    }


def count_decodes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes]]:
    """Return a list that grows by a model's label and the tokens at each decode."""
    seen: list[tuple[str, bytes]] = []
    decode = Engine.decode

    def counting(self: Engine, step: Step) -> np.ndarray:
        seen.append((self.label, step.tokens.tobytes()))
        return decode(self, step)

    monkeypatch.setattr(Engine, "decode", counting)
    return seen
