"""What runs on a worker: functions that Dask calls there, with arguments that travel."""

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from imatrix_lab import __version__
from imatrix_lab.core import config, digests, interrupt, remote_store
from imatrix_lab.core.files import canonical_json
from imatrix_lab.core.progress import Meter, Progress, Relay, Silent
from imatrix_lab.core.remote_store import RemoteStore
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store, fingerprint, os_error
from imatrix_lab.errors import ImatrixLabError, MissingTool, UsageError
from imatrix_lab.llamacpp import toolchain
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models import hub_spec
from imatrix_lab.models.gguf import shard_paths
from imatrix_lab.models.resolve import joined_sha256, resolve
from imatrix_lab.models.tokenizer import silence
from imatrix_lab.study import context, steps
from imatrix_lab.study.actions import ScoredText
from imatrix_lab.study.cluster import carry
from imatrix_lab.study.cluster.carry import Carrier, StudyFile
from imatrix_lab.study.context import Shared
from imatrix_lab.study.folder import Folder
from imatrix_lab.study.graph import Step, Turn
from imatrix_lab.study.plan import plan
from imatrix_lab.study.recipe import Recipe
from imatrix_lab.types import Model

MACHINE = "IMATRIX_LAB_WORKER"
"""The variable by which a worker's process knows its `Machine`."""
LOOK_S, TELL_S = 0.3, 1.0
BEGAN, SAYS, TASK, ENDED = "began", "says", "task", "ended"  # what workers tell


@dataclass(frozen=True)
class Machine:
    """A worker: its name, what it computes with and how much at a time."""

    name: str
    backend: str
    signature: dict[str, str]
    cores: int
    jobs: int
    memory_bytes: int
    models: tuple[str, ...] = ()

    def resources(self) -> dict[str, float]:
        """Return what Dask gives out to steps: a class is as good as endless."""
        own = {class_of(self.signature): 1e6, "cores": float(self.cores)}
        return own | {"memory": float(self.memory_bytes), "compute": float(self.jobs)}


def class_of(signature: Mapping[str, str]) -> str:
    """Return the class of machines whose results compare: one build, one backend, one version."""
    key = fingerprint("class", {"signature": dict(signature), "version": __version__})
    return f"class {signature['backend']} {key[:8]}"


@dataclass(frozen=True)
class Signed(Toolchain):
    """The toolchain of another machine: its paths lead nowhere here, its signature is known."""

    signed: dict[str, str] = dataclasses.field(default_factory=dict)

    def signature(self) -> dict[str, str]:
        """Return the signature as it was there."""
        return dict(self.signed)


class Refused(ImatrixLabError):
    """This machine cannot take part: it is of another class, or lacks the model."""


@dataclass(frozen=True)
class Failure:
    """An error there: what an `ImatrixLabError` has, or a bug with its `traceback`.

    `is_refusal`: that machine does not do this study at all.
    """

    what: str
    where: str | None
    fix: str | None
    is_bug: bool
    is_refusal: bool
    traceback: str


@dataclass(frozen=True)
class Reply:
    """What a call came to on which machine; without failure the result."""

    machine: str
    result: Any = None
    failure: Failure | None = None
    was_stopped: bool = False


class _Teller(Relay):
    """Progress that is told to whoever listens to a topic, and interrupted if it is to stop."""

    def __init__(self, worker: Any, topic: str, name: str, machine: str):
        super().__init__(Silent())
        self._worker, self._topic, self._about = worker, topic, {"name": name, "machine": machine}
        self._told_s = 0.0

    def tell(self, what: str, **details: Any) -> None:
        """Send something; a scheduler that is away misses it."""
        with contextlib.suppress(Exception):
            self._worker.log_event(self._topic, {**self._about, "what": what, **details})

    def say(self, message: str) -> None:
        """Pass a line on."""
        interrupt.check()
        self.tell(SAYS, text=message)

    def title(self, name: str) -> str:
        """Take note of a new task, which is told at its first update."""
        interrupt.check()
        self._told_s = 0.0
        return name

    def updated(self, meter: Meter, note: str) -> None:
        """Tell how far a task is, now and then."""
        interrupt.check()
        if time.monotonic() - self._told_s > TELL_S:
            self._told_s = time.monotonic()
            details = {"task": meter.name, "unit": meter.unit, "note": note}
            self.tell(TASK, done=meter.done, total=meter.total, **details)


def machine() -> Machine:
    """Return what this worker is."""
    text = os.environ.get(MACHINE)
    if text is None:
        fix = "run workers by: imatrix-lab study worker --scheduler-file FILE"
        raise UsageError("this is another kind of Dask worker", fix=fix)
    return config.build(Machine, json.loads(text), MACHINE)


def call(
    topic: str, name: str, function: Callable[..., Any], *arguments: Any, near: Sequence[str] = ()
) -> Reply:
    """Call a function with these arguments and a `Progress`; stop it once nobody wants it.

    `near` is for Dask, which places a call where its arguments are.
    """
    import distributed

    worker, own = distributed.get_worker(), machine()
    key = worker.get_current_task()
    stop, is_over = threading.Event(), threading.Event()

    def watch() -> None:
        while not is_over.wait(LOOK_S):
            task = worker.state.tasks.get(key)
            is_wanted = task is not None and task.state not in ("cancelled", "released")
            if not is_wanted or worker.status != distributed.Status.running:
                stop.set()

    teller = _Teller(worker, topic, name, own.name)
    threading.Thread(target=watch, daemon=True, name=f"watch {name}").start()
    teller.tell(BEGAN)
    try:
        with interrupt.interruptible(stop):
            return Reply(own.name, function(*arguments, teller))
    except KeyboardInterrupt:
        return Reply(own.name, was_stopped=True)
    except Exception as error:
        return Reply(own.name, failure=_failure(error))
    finally:
        is_over.set()
        teller.tell(ENDED)


def _failure(error: Exception) -> Failure:
    text = "".join(traceback.format_exception(error))
    if isinstance(error, OSError):
        error = os_error(error, Store().root)
    if isinstance(error, ImatrixLabError):
        refuses = isinstance(error, Refused)
        return Failure(error.what, error.where, error.fix, False, refuses, text)
    return Failure(f"a bug: {type(error).__name__}: {error}", None, None, True, False, text)


def sees(nonces: Mapping[str, str], progress: Progress) -> bool:
    """Return whether this machine sees the same folders: each has a file with this text."""
    try:
        return all(Path(path).read_text("utf-8") == text for path, text in nonces.items())
    except OSError:
        return False


def probed(part: str, name: str, progress: Progress) -> str | None:
    """Return what this machine's remote store has under a name; None without one."""
    return RemoteStore(part).probe(name) if remote_store.configured() else None


def forget(part: str, progress: Progress) -> None:
    """Remove the files of a study that is finished."""
    shutil.rmtree(carry.folder_of(part, Store()).path, ignore_errors=True)


def prepare(recipe: Recipe, folder: Folder, store: Store, part: str, progress: Progress) -> Shared:
    """Return what the steps share, as `context.prepare`, for a class of machines."""
    session = Session(Store() if part else _as_here(store), progress)
    shared = context.prepare(_with_own_models(recipe), folder, session)
    tools = Signed(**vars(shared.tools), signed=shared.tools.signature())
    return dataclasses.replace(shared, tools=tools, store=store, part=part)


def planned(
    recipe: Recipe, folder: Folder, store: Store, n_machines: int, progress: Progress
) -> plan.Plan:
    """Return what a study for so many machines would take on this one, as it measures itself."""
    session = Session(_as_here(store) if store.root.is_dir() else Store(), progress)
    return plan.plan(_with_own_models(recipe), folder, session, n_machines)


def step(
    order: Step, expected: str, given: Mapping[str, StudyFile], turn: Turn, progress: Progress
) -> dict[str, Any]:
    """Run a step with this machine's own llama.cpp, models and threads.

    `given` are files of the user's that come by the remote store, by their paths. Raises Refused
    if this machine is not of the class `expected`.
    """
    own = machine()
    tools = _tools(own.backend)
    if (actual := class_of(tools.signature())) != expected:
        what = f"{own.name} is of {actual}, and this study of {expected}"
        fix = "the same imatrix-lab, backend and kind of processor; or a study of its own"
        raise Refused(what, fix=fix)
    is_heavy = order.kind in steps.PARALLEL
    turn = dataclasses.replace(turn, progress=progress)
    turn = dataclasses.replace(turn, threads=max(1, own.cores // own.jobs) if is_heavy else 1)
    run = order.run
    assert isinstance(run, partial)
    here = _here(next(a for a in run.args if isinstance(a, Shared)), tools, progress)
    models = {model.label: model for model in here.models}
    carrier = Carrier(here.folder, here.store, here.part, is_worker=True) if here.part else None

    def own_of(argument: Any) -> Any:
        if isinstance(argument, Model):
            return models[argument.label]
        if carrier and isinstance(argument, ScoredText) and str(argument.path) in given:
            file = carrier.file(given[str(argument.path)], progress)
            return dataclasses.replace(argument, path=file)
        return here if isinstance(argument, Shared) else argument

    name = f"step-{fingerprint('step', {'id': order.id})[:16]}"
    with here.work.lock(name, progress):
        if carrier is None:
            return dict(run.func(*map(own_of, run.args), turn, **run.keywords))
        here.work.follow_remote()
        results = {name: carrier.brought(r, progress) for name, r in turn.results.items()}
        turn = dataclasses.replace(turn, results=results)
        result = run.func(*map(own_of, run.args), turn, **run.keywords)
        return dict(carrier.sent(result, progress))


@functools.cache
def _tools(backend: str) -> Toolchain:
    tools = toolchain.find(Store(), backend)
    if tools is None:
        fix = f"imatrix-lab toolchain build --backend {backend}"
        raise MissingTool("llama.cpp is not built here any more", fix=fix)
    silence(tools.bindings())
    return tools


def _as_here(store: Store) -> Store:
    """Return a store that this machine sees too, with the remote store that is set here."""
    return Store(store.root, remote=remote_store.configured())


def _here(shared: Shared, tools: Toolchain, progress: Progress) -> Shared:
    own = Store() if shared.part else _as_here(shared.store)
    folder = carry.folder_of(shared.part, own) if shared.part else shared.folder
    shared = dataclasses.replace(shared, store=own, folder=folder)
    session = Session(shared.store, progress)
    models = tuple(_model(model, session) for model in shared.models)
    return dataclasses.replace(shared, tools=tools, models=models)


def _model(model: Model, session: Session) -> Model:
    """Return a model at its path on this machine: where it was there, or in a folder of models.

    The demo model, and one of the Hub, is fetched if it is not here.
    """
    for first in (model.path, *_candidates(model, session)):
        shards = shard_paths(first) if first.exists() else ()
        if sum(path.stat().st_size for path in shards) != model.facts.size_bytes:
            continue
        if joined_sha256([digests.sha256_of(p, session) for p in shards]) == model.sha256:
            return dataclasses.replace(model, path=shards[0], shards=shards)
    what = f"{machine().name} does not have the model {model.origin}, sha256 {model.sha256[:16]}…"
    fix = "put the file into a folder and name that: imatrix-lab study worker --models FOLDER"
    raise Refused(what, where=model.path, fix=fix)


def _candidates(model: Model, session: Session) -> Iterator[Path]:
    """Yield the files in this machine's folders of models, those of the same name first."""
    every = [p for folder in machine().models for p in sorted(Path(folder).rglob("*.gguf"))]
    yield from sorted(every, key=lambda path: path.name != model.path.name)
    if model.origin == "demo" or hub_spec.is_spec(model.origin):
        with contextlib.suppress(ImatrixLabError):
            yield resolve(model.origin, session).path


def _with_own_models(recipe: Recipe) -> Recipe:
    """Return a recipe whose models that are files are named as they lie on this machine."""
    folders = [Path(folder) for folder in machine().models]

    def named(spec: str) -> str:
        path = Path(spec)
        if path.suffix != ".gguf" or path.exists():
            return spec
        inside = (p for folder in folders for p in sorted(folder.rglob(path.name)))
        return str(next(inside, path))

    return dataclasses.replace(recipe, models=tuple(map(named, recipe.models)))


def environment(own: Machine) -> dict[str, str]:
    """Return what a worker's process gets to know itself by."""
    return {MACHINE: canonical_json(config.plain(own))}
