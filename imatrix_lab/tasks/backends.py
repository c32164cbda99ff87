"""Who answers a task's items: a quant in process, or a server somewhere."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from hashlib import sha256
from typing import Any, Protocol

from imatrix_lab.core.files import canonical_json
from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.errors import UsageError
from imatrix_lab.llamacpp import client as endpoint
from imatrix_lab.llamacpp import server, toolchain
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models import chat_template, resolve
from imatrix_lab.models.convert import converter
from imatrix_lab.score import generate, job, multiple_choice
from imatrix_lab.score.job import Setup
from imatrix_lab.tasks.chat import Chat
from imatrix_lab.tasks.records import name_part
from imatrix_lab.types import (
    ChatRequest,
    ChoiceItem,
    ChoiceScores,
    Generated,
    GenerateItem,
    Model,
    TaskRequest,
)

LOCAL = "local"
"""In place of an address: a llama-server on this machine, started for the purpose."""
CONTEXT, CHAT_CONTEXT = 4096, 8192


class Answerer(Protocol):
    """What a task needs of an engine.

    Attributes
    ----------
    label : short name, for files.
    is_chat : whether it has a template for chats; else it goes on from plain text.
    """

    label: str
    is_chat: bool

    def quant(self) -> dict[str, Any]:
        """Return what answers, for the signature: sha256, name, type, calibration."""

    def instrument(self) -> dict[str, Any]:
        """Return how it answers, for the signature: toolchain, protocol, compute."""

    def choose(self, items: Iterable[ChoiceItem]) -> Iterator[ChoiceScores]:
        """Yield likelihoods of options."""

    def generate(self, items: Sequence[GenerateItem]) -> Iterator[Generated]:
        """Yield answers, in any order."""


class Client(Chat, Protocol):
    """What is needed of an OpenAI-compatible endpoint: `host` is its name and port."""

    host: str

    def about(self) -> dict[str, Any]:
        """Return what the server tells of the model."""

    def generate(self, items: Iterable[GenerateItem]) -> Iterator[Generated]:
        """Yield answers as they come; those that failed have an error."""


class OnThisMachine:
    """A quant on this machine.

    Parameters
    ----------
    client : of a llama-server that has it, which then writes the answers.
    """

    def __init__(
        self,
        tools: Toolchain,
        model: Model,
        how: Setup,
        progress: Progress,
        client: Client | None = None,
    ):
        self._tools, self._model, self._how, self._progress = tools, model, how, progress
        self._client = client
        self.label = model.label
        self.is_chat = bool(chat_template.of(model))

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
        name = "llama-server" if self._client else "in process"
        return {
            "toolchain": self._tools.signature(),
            "protocol": {
                "name": name,
                "n_ctx": self._how.engine.n_ctx,
                "prompts": "chat" if self.is_chat else "plain",
            },
            "compute": {**self._how.engine.signature(), "parallel": self._how.parallel},
        }

    def choose(self, items: Iterable[ChoiceItem]) -> Iterator[ChoiceScores]:
        """See `Answerer`."""
        return multiple_choice.score(self._tools, self._model, items, self._how, self._progress)

    def generate(self, items: Sequence[GenerateItem]) -> Iterator[Generated]:
        """See `Answerer`.

        Raises
        ------
        UsageError : the context has no room for any prompt beside its answer.
        """
        longest, n_ctx = max(item.max_tokens for item in items), self._how.engine.n_ctx
        if longest >= n_ctx:
            raise UsageError(
                f"an answer may take {longest} tokens, and the context of {self.label} has {n_ctx}:"
                " there is no room for a prompt",
                fix=f"--ctx {longest + CONTEXT // 4}, if the model can use so much",
            )
        if self._client:
            return _asked(self._client, items, self.label, self._progress)
        return generate.generate(self._tools, self._model, items, self._how, self._progress)


class Remote:
    """A model behind a server somewhere, of which is known what that server tells."""

    is_chat = True

    def __init__(self, client: Client, progress: Progress):
        self._client, self._progress = client, progress
        self.label = name_part(client.model)

    def quant(self) -> dict[str, Any]:
        """See `Answerer`."""
        name, told = self._client.model, self._client.about()
        known = {"host": self._client.host, "name": name, **told}
        return {**known, "sha256": sha256(canonical_json(known).encode()).hexdigest(),
                "type": "unknown"}  # fmt: skip

    def instrument(self) -> dict[str, Any]:
        """See `Answerer`."""
        return {"toolchain": {"commit": "unknown", "backend": "endpoint"},
                "protocol": {"name": "endpoint"}}  # fmt: skip

    def choose(self, items: Iterable[ChoiceItem]) -> Iterator[ChoiceScores]:
        """See `Answerer`.

        Raises
        ------
        UsageError : always.
        """
        raise UsageError(
            "options are scored by their likelihood, which a server does not tell",
            fix="run this task without --endpoint, on the GGUF itself",
        )

    def generate(self, items: Sequence[GenerateItem]) -> Iterator[Generated]:
        """See `Answerer`."""
        return _asked(self._client, items, self.label, self._progress)


def _asked(
    client: Client, items: Sequence[GenerateItem], name: str, progress: Progress
) -> Iterator[Generated]:
    with progress.task(f"answers, {name}", len(items), "items") as task:
        for done, answer in enumerate(client.generate(items), 1):
            yield answer
            task.update(done)


def open_all(
    request: TaskRequest, session: Session
) -> list[Callable[[], AbstractContextManager[Answerer]]]:
    """Return what opens each quant of a request; each is found before any is opened.

    Raises
    ------
    BadModel : a quant is damaged.
    """
    if request.endpoint not in ("", LOCAL):
        return [partial(_remote, request, name, session.progress) for name in request.quants]
    tools = toolchain.get(request.compute.backend, session, own=False)
    convert = converter(tools)
    found = [resolve.resolve(spec, session, convert) for spec in request.quants]
    return [partial(here, request, tools, one, session) for one in found]


@contextmanager
def _remote(request: TaskRequest, name: str, progress: Progress) -> Iterator[Answerer]:
    with endpoint.Client(
        request.endpoint, name, request.api_key, parallel=request.parallel
    ) as client:
        yield Remote(client, progress)


@contextmanager
def here(
    request: TaskRequest, tools: Toolchain, model: Model, session: Session
) -> Iterator[Answerer]:
    """Open a quant on this machine."""
    n_ctx = request.compute.n_ctx or min(CONTEXT, model.facts.n_ctx_train or CONTEXT)
    options = dataclasses.replace(request.compute, n_ctx=n_ctx)
    how = job.prepare(tools, model, session, options, request.parallel)
    if not request.endpoint:
        yield OnThisMachine(tools, model, how, session.progress)
        return
    with server.serve(
        tools,
        model.path,
        request.parallel,
        how.engine.n_ctx,
        threads=request.compute.threads,
        gpu_layers=request.compute.gpu_layers,
    ) as client:
        yield OnThisMachine(tools, model, how, session.progress, client)


@contextmanager
def chat(request: ChatRequest, session: Session) -> Iterator[Chat]:
    """Give a model to talk to: a server's, or a GGUF that is served here while the block lasts."""
    if request.endpoint not in ("", LOCAL):
        with endpoint.Client(
            request.endpoint, request.model, request.api_key, parallel=request.parallel
        ) as client:
            yield client
        return
    tools = toolchain.get(request.compute.backend, session, own=False)
    found = resolve.resolve(request.model, session, converter(tools))
    if not chat_template.of(found):
        session.progress.say(
            f"note: {found.label} has no chat template: it was not made to follow instructions"
        )
    n_ctx = min(CHAT_CONTEXT, found.facts.n_ctx_train or CHAT_CONTEXT)
    with server.serve(
        tools, found.path, request.parallel, n_ctx, gpu_layers=request.compute.gpu_layers
    ) as client:
        client.model, client.identity = found.label, found.sha256
        yield client
