"""Who answers a task's items: a quant in process, or a server somewhere."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from typing import Any, Protocol

from imatrix_lab import models, pipeline, toolchain
from imatrix_lab.errors import MissingTool, UsageError
from imatrix_lab.progress import Progress
from imatrix_lab.records import (
    ChoiceItem,
    ChoiceScores,
    Generated,
    GenerateItem,
    Model,
    TaskRequest,
)
from imatrix_lab.score import choice, generate, setup
from imatrix_lab.score.setup import Setup
from imatrix_lab.store import Store
from imatrix_lab.tasks.chat import Chat
from imatrix_lab.toolchain import Toolchain


class Answerer(Protocol):
    """What a task needs of an engine.

    Attributes
    ----------
    label : short name, for files.
    """

    label: str

    def quant(self) -> dict[str, Any]:
        """Return what answers, for the signature: sha256, name, type, calibration."""

    def instrument(self) -> dict[str, Any]:
        """Return how it answers, for the signature: toolchain, protocol, compute."""

    def choose(self, items: Iterable[ChoiceItem]) -> Iterator[ChoiceScores]:
        """Yield likelihoods of options."""

    def generate(self, items: Iterable[GenerateItem]) -> Iterator[Generated]:
        """Yield answers, in any order."""


class Client(Chat, Protocol):
    """What is needed of an OpenAI-compatible endpoint."""

    def generate(self, items: Iterable[GenerateItem], parallel: int) -> Iterator[Generated]:
        """Yield answers as they come; those that failed have an error."""


class InProcess:
    """A quant on this machine."""

    def __init__(self, tools: Toolchain, model: Model, how: Setup, progress: Progress):
        self._tools, self._model, self._how, self._progress = tools, model, how, progress
        self.label = model.label

    def quant(self) -> dict[str, Any]:
        """See `Answerer`."""
        facts = self._model.facts
        return {
            "sha256": self._model.sha256, "name": self._model.label, "type": facts.file_type,
            "size_bytes": facts.size_bytes, "bits_per_weight": round(facts.bits_per_weight, 4),
            "imatrix_sha256": facts.imatrix_sha256, "calibration": facts.calibration,
        }  # fmt: skip

    def instrument(self) -> dict[str, Any]:
        """See `Answerer`."""
        return {
            "toolchain": self._tools.signature(),
            "protocol": {"name": "in process", "n_ctx": self._how.engine.n_ctx},
            "compute": {**vars(self._how.engine), "parallel": self._how.parallel},
        }

    def choose(self, items: Iterable[ChoiceItem]) -> Iterator[ChoiceScores]:
        """See `Answerer`."""
        return choice.score(self._tools, self._model, items, self._how, self._progress)

    def generate(self, items: Iterable[GenerateItem]) -> Iterator[Generated]:
        """See `Answerer`."""
        return generate.generate(self._tools, self._model, items, self._how, self._progress)


class Remote:
    """A server that speaks the OpenAI protocol."""

    def __init__(self, client: Client, parallel: int):
        self._client, self._parallel = client, parallel
        self.label = "".join(c if c.isalnum() or c in "-_." else "-" for c in client.model)

    def quant(self) -> dict[str, Any]:
        """See `Answerer`. What a server runs is known by name alone."""
        name = self._client.model
        return {"sha256": sha256(name.encode()).hexdigest(), "name": name, "type": "unknown"}

    def instrument(self) -> dict[str, Any]:
        """See `Answerer`."""
        return {"toolchain": {"commit": "unknown", "backend": "endpoint"},
                "protocol": {"name": "endpoint"}}  # fmt: skip

    def choose(self, items: Iterable[ChoiceItem]) -> Iterator[ChoiceScores]:
        """See `Answerer`."""
        raise UsageError(
            "options are scored by their likelihood, which a server does not tell",
            fix="run this task without --endpoint, on the GGUF itself",
        )

    def generate(self, items: Iterable[GenerateItem]) -> Iterator[Generated]:
        """See `Answerer`."""
        return self._client.generate(items, self._parallel)


def open_all(
    request: TaskRequest, store: Store, progress: Progress
) -> list[Callable[[], Answerer]]:
    """Return what opens each quant of a request; each is found before any is opened.

    Raises
    ------
    BadModel : a quant is damaged.
    """
    if request.endpoint:
        clients = [client(request.endpoint, name, request.api_key) for name in request.quants]
        return [functools.partial(Remote, one, request.parallel) for one in clients]
    tools = toolchain.get(store, request.backend, progress, own=False)
    convert = pipeline.converter(tools)
    found = [models.resolve(spec, store, progress, convert) for spec in request.quants]

    def opener(model: Model) -> Callable[[], Answerer]:
        return lambda: InProcess(
            tools, model,
            setup.prepare(
                tools, model, store, progress, n_ctx=request.n_ctx, threads=request.threads,
                gpu_layers=request.gpu_layers, parallel=request.parallel,
            ),
            progress,
        )  # fmt: skip

    return [opener(model) for model in found]


def client(url: str, model: str, api_key: str) -> Client:
    """Return a client of an OpenAI-compatible server."""
    raise MissingTool("this version cannot ask a server", where=url)
