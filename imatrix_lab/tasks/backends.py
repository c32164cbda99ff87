"""What answers a task's items: a quant in this process, or a model behind a server's address."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from hashlib import sha256
from typing import Any

from imatrix_lab.core.files import canonical_json
from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.errors import UsageError
from imatrix_lab.llamacpp import compute, server, thoughts
from imatrix_lab.llamacpp.build import get_toolchain
from imatrix_lab.llamacpp.client import Client, check_url
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models import chat_template, resolve
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

CONTEXT, CHAT_CONTEXT = 4096, 8192


class LocalModel:
    """A GGUF file, run in this process; without a chat template it continues plain text.

    `has_switch`: the template takes a variable that lets the model think first; `opened` is what
    it begins thoughts with, if it does so always.
    """

    def __init__(self, tools: Toolchain, model: Model, setup: Setup, progress: Progress):
        self._tools, self._model, self._setup, self._progress = tools, model, setup, progress
        self.label = model.label
        template = chat_template.of(model)
        self.is_chat, self.has_switch = bool(template), thoughts.has_switch(template)
        self.opened = chat_template.thoughts_opened(template)

    def quant(self) -> dict[str, Any]:
        """Return what answers, for the signature: sha256, name, type, calibration."""
        return {**job.identity(self._model), **job.origin(self._model)}

    def instrument(self) -> dict[str, Any]:
        """Return how it answers, for the signature: toolchain, protocol, compute."""
        settings = self._setup.engine
        prompts = "chat" if self.is_chat else "plain"
        return {
            "toolchain": self._tools.signature(),
            "protocol": {"name": "in process", "n_ctx": settings.n_ctx, "prompts": prompts},
            "compute": {**settings.signature(), "parallel": self._setup.parallel},
        }

    def choose(self, items: Iterable[ChoiceItem]) -> Iterator[ChoiceScores]:
        """Yield likelihoods of options."""
        return multiple_choice.score(self._tools, self._model, items, self._setup, self._progress)

    def generate(self, items: Sequence[GenerateItem]) -> Iterator[Generated]:
        """Yield answers, in any order."""
        longest, n_ctx = max(item.max_tokens for item in items), self._setup.engine.n_ctx
        if longest >= n_ctx:
            raise UsageError(
                f"an answer may take {longest} tokens, and the context of {self.label} has {n_ctx}:"
                " there is no room for a prompt",
                fix=f"--ctx {longest + CONTEXT // 4}, if the model can use so much",
            )
        return generate.generate(self._tools, self._model, items, self._setup, self._progress)


class RemoteModel:
    """A model behind a server's address: only what the server says is known of it."""

    is_chat = True

    def __init__(self, client: Client, progress: Progress):
        self._client, self._progress = client, progress
        self.label, self.has_switch = name_part(client.model), client.has_switch
        self.opened = chat_template.thoughts_opened(client.template)

    def quant(self) -> dict[str, Any]:
        """Return what the server says; `sha256` is of that."""
        known = {"host": self._client.host, "name": self._client.model, **self._client.about()}
        digest = sha256(canonical_json(known).encode()).hexdigest()
        return {**known, "sha256": digest, "type": "unknown"}

    def instrument(self) -> dict[str, Any]:
        """Return that nothing is known."""
        toolchain = {"commit": "unknown", "backend": "endpoint"}
        return {"toolchain": toolchain, "protocol": {"name": "endpoint"}}

    def choose(self, items: Iterable[ChoiceItem]) -> Iterator[ChoiceScores]:
        """Refuse: a server does not give the likelihood of a text."""
        raise UsageError(
            "options are scored by their likelihood, which a server does not give",
            fix="run this task without --endpoint, on the GGUF file itself",
        )

    def generate(self, items: Sequence[GenerateItem]) -> Iterator[Generated]:
        """Yield answers as they come."""
        with self._progress.task(f"answers, {self.label}", len(items), "items") as task:
            for done, answer in enumerate(self._client.generate(items), 1):
                in_thoughts = answer.finish == "length" and not thoughts.has_marks(answer.text)
                opened = self.opened if in_thoughts else ""
                yield dataclasses.replace(answer, text=opened + answer.text)
                task.update(done)


Answerer = LocalModel | RemoteModel


def check(endpoint: str, models: Iterable[str], session: Session) -> None:
    """Raise what is wrong with an endpoint's address or, without one, with models' names."""
    if endpoint:
        return check_url(endpoint)
    for spec in models:
        resolve.check_spec(spec, session.store)


def open_all(
    request: TaskRequest, session: Session
) -> list[Callable[[], AbstractContextManager[Answerer]]]:
    """Return what opens each quant of a request; each is looked up before any is opened."""
    if request.endpoint:
        return [partial(_remote, request, name, session.progress) for name in request.quants]
    check(request.endpoint, request.quants, session)  # before llama.cpp is built
    tools = get_toolchain(request.compute.backend, session, own=False)
    models = [resolve.resolve_to_run(spec, session, tools) for spec in request.quants]
    return [partial(open_local, request, tools, model, session) for model in models]


@contextmanager
def _remote(request: TaskRequest, name: str, progress: Progress) -> Iterator[Answerer]:
    with Client(request.endpoint, name, request.api_key, parallel=request.parallel) as connected:
        yield RemoteModel(connected, progress)


@contextmanager
def open_local(
    request: TaskRequest, tools: Toolchain, model: Model, session: Session
) -> Iterator[Answerer]:
    """Prepare a quant on this machine."""
    n_ctx = request.compute.n_ctx or min(CONTEXT, model.facts.n_ctx_train or CONTEXT)
    options = dataclasses.replace(request.compute, n_ctx=n_ctx)
    setup = job.prepare(tools, model, session, options, request.parallel)
    yield LocalModel(tools, model, setup, session.progress)


@contextmanager
def open_chat(request: ChatRequest, session: Session) -> Iterator[Chat]:
    """Give a model to talk to: a server's, or a GGUF file that is served here during the block."""
    check(request.endpoint, (request.model,), session)
    if request.endpoint:
        parallel = request.parallel
        with Client(request.endpoint, request.model, request.api_key, parallel=parallel) as client:
            yield client
        return
    tools = get_toolchain(request.compute.backend, session, own=False)
    model = resolve.resolve_to_run(request.model, session, tools)
    if not chat_template.of(model):
        session.progress.say(
            f"note: {model.label} has no chat template: it was not trained to follow instructions"
        )
    n_ctx = min(CHAT_CONTEXT, model.facts.n_ctx_train or CHAT_CONTEXT)
    placement = compute.placement(request.compute)
    with server.serve(tools, model.path, request.parallel, n_ctx, placement=placement) as served:
        served.model, served.identity = model.label, model.sha256
        yield served
