"""The side that runs a study on a cluster: steps go out as futures, small results come back.

The study's own scheduler decides what can run, as on one machine; Dask decides where. A step's key
in Dask begins with its fingerprint. What is made lies in the folders that all machines see.
"""

import contextlib
import dataclasses
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path
from typing import Any

from imatrix_lab.core import interrupt, process, progress
from imatrix_lab.core.process import Background
from imatrix_lab.core.progress import Progress, Silent
from imatrix_lab.core.remote_store import REMOTE, RemoteStore
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import ImatrixLabError, ToolFailed, UsageError
from imatrix_lab.study import graph, steps
from imatrix_lab.study.actions import ScoredText
from imatrix_lab.study.cluster import address, carry, split, there
from imatrix_lab.study.cluster.address import Address
from imatrix_lab.study.cluster.carry import Carrier, StudyFile
from imatrix_lab.study.cluster.there import BEGAN, ENDED, SAYS, TASK, Failure, Reply
from imatrix_lab.study.context import Shared
from imatrix_lab.study.folder import RUNNING, Folder
from imatrix_lab.study.graph import Step, Steps, Turn
from imatrix_lab.study.plan.placement import Placement, Task, place
from imatrix_lab.study.plan.plan import Plan
from imatrix_lab.study.recipe import Recipe, absolute
from imatrix_lab.study.scheduler import Capacity
from imatrix_lab.study.status import DONE, WAITING, Watch

CLASS, TOKEN = "class", "token"  # in a study's status
MANY = 1 << 20
UNBOUNDED = Capacity(MANY, MANY, 1 << 62)
"""Every step that can run is given to Dask at once."""
BULKY = ("quant",)
"""Kinds of steps whose files are large, so that it matters where these are read."""
INFO_S = 0.5
"""How long what Dask says of its workers is taken to be true: every step looks."""
LOOK_S, WAKE_S, STOP_S, FETCH_S, BACK_S, SOON_S, SAY_AFTER_S = 0.2, 1.0, 15.0, 5.0, 10.0, 60.0, 5.0
DEATHS = 4
"""So many processes may die with a step in them: then it is taken to be why."""

Event = Mapping[str, Any]


class _Gone(Exception):
    """The workers that a call is bound to are not there any more."""


class Cluster:
    """A scheduler's workers, for one study; each of the programs `started` is to bring one."""

    def __init__(
        self, at: Address, folder: Folder, session: Session, started: Sequence[Background] = ()
    ):
        self._at, self._folder, self._session, self._started = at, folder, session, started
        self._topic, self._lock = f"study-{secrets.token_hex(8)}", threading.Lock()
        self._events: dict[str, queue.SimpleQueue[Event]] = {}
        self._running: dict[str, str] = {}  # calls, and the machine that began each last
        self._class, self._chosen, self._unfit = "", set[str](), set[str]()
        self._carrier: Carrier | None = None
        self._marks: dict[str, Any] = {}
        self._workers, self._told_s, self._asking = dict[str, Any](), -INFO_S, threading.Lock()
        self.watch: Watch | None = None
        self._client = self._connect()

    # -- the connection

    def _connect(self) -> Any:
        """Return a client; wait for a scheduler that does not answer."""
        distributed, has_said = address.dask(), False
        while True:
            interrupt.check()
            try:
                with process.interrupts_held():  # its threads
                    client = distributed.Client(
                        self._at.address, security=self._at.security(), timeout=10,
                        set_as_default=False,
                    )  # fmt: skip
                client.subscribe_topic(self._topic, self._hear)
                self._scheduler_id = client.scheduler_info(n_workers=1)["id"]
                return client
            except (OSError, TimeoutError) as error:
                if not has_said:
                    where = self._at.address
                    self._session.progress.say(f"no answer from {where}: {error}; trying again")
                has_said = True
                time.sleep(1.0)

    def _connected(self, lost: Any = None) -> Any:
        """Return the client, a new one in place of `lost`."""
        with self._lock:
            if lost is self._client or self._client.status not in ("running", "connecting"):
                with contextlib.suppress(Exception):
                    self._client.close(timeout=2)
                self._running.clear()
                self._marks.clear()
                self._client = self._connect()
            return self._client

    def _hear(self, event: tuple[float, Event]) -> None:
        """Take what a worker tells (in Dask's thread)."""
        message = event[1]
        name, where = message["name"], message["machine"]
        if message["what"] == BEGAN:
            self._running[name] = where
        elif message["what"] == ENDED and self._running.get(name) == where:
            del self._running[name]
        if heard := self._events.get(name):
            heard.put(message)

    def close(self) -> None:
        """Let go of the workers, once what ran on them has been stopped."""
        until = time.monotonic() + STOP_S
        while self._running and time.monotonic() < until:
            time.sleep(LOOK_S)
        with contextlib.suppress(Exception):
            self._client.close(timeout=5)

    # -- workers

    def workers(self) -> dict[str, dict[str, float]]:
        """Return the resources of each of our kind of workers, by name."""
        every = {str(w["name"]): dict(w["resources"]) for w in self._info().values()}
        return {name: own for name, own in every.items() if _class(own)}

    def _info(self) -> dict[str, Any]:
        """Return what Dask knows of each worker, by address: one that starts again has another."""
        with self._asking:
            if time.monotonic() - self._told_s >= INFO_S:
                self._workers = dict(self._connected().scheduler_info(n_workers=-1)["workers"])
                self._told_s = time.monotonic()
            return self._workers

    def count(self) -> int:
        """Return how many workers this study can use: one that went may be starting again."""
        return len((self._chosen | self._of_class().keys()) - self._unfit)

    def _of_class(self) -> dict[str, dict[str, float]]:
        """Return the workers that this study can use."""
        every = self.workers().items()
        return {n: own for n, own in every if _class(own) == self._class and n not in self._unfit}

    def _choose(self, recipe: Recipe) -> dict[str, dict[str, float]]:
        """Wait for workers; return those of the class that the study began in, else the largest.

        Others are left out: their results would not compare. Raises ToolFailed: a program that
        was to bring one has ended.
        """
        say, began = self._session.progress.say, time.monotonic()
        wanted, has_said = str(self._folder.status().get(CLASS, "")), False
        while True:
            interrupt.check()
            every = self.workers()
            for program in self._started:
                program.check()
            cores: dict[str, float] = {}
            for own in every.values():
                name = _class(own)
                backends = ("", name.split()[1])
                if name == wanted if wanted else recipe.limits.backend in backends:
                    cores[name] = cores.get(name, 0.0) + own["cores"]
            waited = time.monotonic() - began
            if cores and (len(every) >= len(self._started) or waited > SOON_S):
                break
            if waited > SAY_AFTER_S and not has_said:
                here = f"; there are {', '.join(every)}" if every else ""
                say(f"waiting for workers{f' of {wanted}' if wanted else ''}{here}")
                has_said = True
            time.sleep(LOOK_S)
        self._class = max(sorted(cores), key=cores.__getitem__)
        chosen = {name: own for name, own in every.items() if _class(own) == self._class}
        self._chosen = {*chosen}
        say(f"{self._class}: {', '.join(sorted(chosen))}")
        for name in sorted(every.keys() - chosen.keys()):
            say(f"note: {name} is left out: {_class(every[name])}, whose results do not compare")
        return chosen

    # -- calls

    def prepare(self, recipe: Recipe) -> Shared:
        """Return what the steps share, as one of the workers has it."""
        store, recipe = self._session.store, self._with_limits(recipe)
        token = self._folder.status().get(TOKEN) or secrets.token_hex(8)
        self._folder.write_status({**self._folder.status(), CLASS: self._class, TOKEN: token})
        if part := self._part(carry.part_of(str(token))):
            self._carrier = Carrier(self._folder, store, part, is_worker=False)
        else:
            store.share()
            Store(self._folder.of("work")).share()
        turn = Turn(1, self._session.progress, {})
        name, call = f"preparing {recipe.name}", (there.prepare, recipe, self._folder, store, part)
        shared: Shared = self._somewhere(name, {}, *call, turn=turn).result
        return dataclasses.replace(shared, recipe=recipe)

    def _part(self, part: str) -> str:
        """Return the part of the remote store that a study takes; "" if all see its folders.

        Raises UsageError: machines have neither folders nor a remote store in common.
        """
        store, token = self._session.store, secrets.token_hex(16)
        with _nonces(store.root, self._folder.path) as nonces:
            sees = self._on_each(self._of_class(), there.sees, nonces)
        if all(sees.values()):
            return ""
        if not store.remote:
            blind = ", ".join(sorted(name for name, sees_it in sees.items() if not sees_it))
            what = f"{blind}: the folders {store.root} and {self._folder.path} are not seen there"
            fix = "a folder that all machines see at the same path, IMATRIX_LAB_CACHE for the store"
            raise UsageError(what, fix=f"{fix}; or a remote store: {REMOTE}=s3://BUCKET/PREFIX")
        RemoteStore(part).probe(self._topic, token)
        probed = self._on_each(self._of_class(), there.probed, part, self._topic)
        if others := sorted(name for name, said in probed.items() if said != token):
            what = f"{', '.join(others)}: there {REMOTE} is not set, or to another place"
            raise UsageError(what, fix="set it alike where workers are started")
        self._session.progress.say("no folder in common: files go by the remote store")
        return part

    def forget(self) -> None:
        """Remove what a finished study has left on other machines and in the remote store."""
        if self._carrier:
            part, say = self._carrier.part, self._session.progress.say
            try:
                part.remove()
                self._on_each(self._of_class(), there.forget, part.below)
            except ImatrixLabError as error:  # the results are there
                left = f"files of this study are left in the remote store, in {part.below}"
                say(f"note: {left}: {error.what}")

    def _with_limits(self, recipe: Recipe) -> Recipe:
        """Return a recipe as workers of one class take it, any of them."""
        chosen = self._choose(recipe)
        limits = dataclasses.replace(recipe.limits, backend=self._class.split()[1])
        if not limits.memory_gib and limits.backend == "cpu":  # a GPU's is not known
            memory = min(own["memory"] for own in chosen.values())
            limits = dataclasses.replace(limits, memory_gib=memory / 2**30)
        return dataclasses.replace(absolute(recipe), limits=limits)

    def plan(self, recipe: Recipe) -> tuple[Plan, Placement]:
        """Return what a study takes on one of the machines alone, and on all of them."""
        recipe, store = self._with_limits(recipe), self._session.store
        machines = self._of_class()
        call = (there.planned, recipe, self._folder, store, len(machines))
        plans: dict[str, Plan] = self._on_each(machines, *call)
        seconds = {(row.id, name): row.seconds for name, p in plans.items() for row in p.rows}
        if not plans:
            raise ToolFailed("all workers went while they were asked", fix="look at their output")
        first = next(iter(plans.values()))
        todo = {row.id for row in first.rows if not row.is_done and row.kind != "tidy"}
        tasks = [
            Task(row.id, row.what, tuple(n for n in row.waits_for if n in todo), row.disk_bytes,
                 row.memory_bytes)
            for row in first.rows if row.id in todo
        ]  # fmt: skip
        memory = {name: int(machines[name]["memory"]) for name in plans}
        return first, place(tasks, memory, lambda step, machine: seconds[step, machine])

    def steps(self, every: Steps) -> tuple[Step, ...]:
        """Return the same steps, which run on the cluster."""
        keys = graph.keys(every)
        return tuple(
            dataclasses.replace(step, run=partial(self._step, step, keys[step.id]))
            if isinstance(step.run, partial) and not self._is_here(step)
            else step
            for step in every
        )

    def _is_here(self, step: Step) -> bool:
        """Whether a step runs in this process: what people vote on may be in the study's folder."""
        return step.is_cleanup or bool(self._carrier and step.kind == "page")

    def _step(self, step: Step, key: str, turn: Turn) -> dict[str, Any]:
        resources = {"memory": float(step.memory_bytes)}
        if step.kind in steps.PARALLEL:
            resources["compute"] = 1.0
        there_turn, given = dataclasses.replace(turn, progress=Silent()), dict[str, StudyFile]()
        if carrier := self._carrier:
            needed = {*step.depends_on(), *split.parts_of(step)} - {*turn.parts}
            results = {name: r for name, r in turn.results.items() if name in needed}
            results = {name: carrier.sent(r, turn.progress) for name, r in results.items()}
            there_turn = dataclasses.replace(there_turn, results={**turn.results, **results})
            assert isinstance(step.run, partial)
            texts = (a.path for a in step.run.args if isinstance(a, ScoredText) and a.path)
            given = {str(path): carrier.given(path, turn.progress) for path in texts}
        call = (there.step, step, self._class, given, there_turn)
        near = step.depends_on()
        reply = self._somewhere(step.id, resources, *call, key=key, near=near, turn=turn)
        if step.kind in BULKY:
            self._mark(step.id, reply.machine)
        result = dict(reply.result)
        if not carrier:
            return result
        result = dict(carrier.brought(result, turn.progress))
        if step.kind == split.TASK:  # it has the answers of its parts now
            for name in {*split.parts_of(step)} & turn.results.keys():
                for file in turn.results[name][graph.FILES]:
                    Path(file).unlink(missing_ok=True)
        return result

    def _somewhere(
        self, name: str, resources: dict[str, float], function: Callable[..., Any], *arguments: Any,
        key: str = "", near: tuple[str, ...] = (), turn: Turn,
    ) -> Reply:  # fmt: skip
        """Return what a call came to; what fails on one machine is tried on another.

        A machine that refuses, for want of the model say, is not used any more.
        """
        tried: dict[str, Failure] = {}
        while True:
            others = tuple(n for n in self._of_class() if n not in tried)
            only = others if tried or self._unfit else ()
            call = partial(self._try, name, resources, function, *arguments)
            try:
                reply = call(only=only, key=key, near=near, turn=turn)
            except _Gone:
                continue
            if reply.failure is None:
                return reply
            log = self._log(name, reply)
            if reply.failure.is_refusal:
                self._unfit.add(reply.machine)
            else:
                tried[reply.machine] = reply.failure
            if len(tried) > 1 or not self._of_class().keys() - tried.keys():
                raise _error(next(iter(tried.values()), reply.failure), log)
            turn.progress.say(f"failed on {reply.machine}: {reply.failure.what}; trying another")

    def _log(self, name: str, reply: Reply) -> Path:
        """Keep what a worker says of a failure."""
        assert reply.failure
        path = self._folder.of("logs", f"{name}.{reply.machine}.log")
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(reply.failure.traceback, encoding="utf-8")
        return path

    def _on_each(self, machines: Iterable[str], *call: Any) -> dict[str, Any]:
        """Return a call's result on each machine, by name; one that goes meanwhile has none."""
        results, turn = {}, Turn(1, self._session.progress, {})
        for name in sorted(machines):
            with contextlib.suppress(_Gone):
                reply = self._try(f"asking {name}", {}, *call, only=(name,), turn=turn)
                if reply.failure:
                    raise _error(reply.failure, None)
                results[name] = reply.result
        return results

    def _try(
        self, name: str, resources: dict[str, float], function: Callable[..., Any], *arguments: Any,
        only: tuple[str, ...] = (), key: str = "", near: tuple[str, ...] = (), turn: Turn,
    ) -> Reply:  # fmt: skip
        """Return what a function of `there` came to; ask again if it was lost on the way.

        It is placed where what the steps `near` have made is, unless another machine is idle.
        Raises _Gone if none of the workers `only` is there.
        """
        heard = self._events.setdefault(name, queue.SimpleQueue())
        client, n_killed = None, 0
        while True:
            client = self._connected(client)
            where = self._addresses(only) if only else []
            most = max((own["memory"] for own in self._of_class().values()), default=0.0)
            if resources.get("memory", 0.0) > most > 0:
                resources = {**resources, "memory": most}  # alone, as on one machine
            future = client.submit(
                there.call, self._topic, name, function, *arguments,
                key=f"{key or name}-{secrets.token_hex(4)}", pure=False, retries=0,
                resources={**resources, self._class: 1.0}, workers=where or None,
                near=[m for n in near if (m := self._marks.get(n)) and m.status == "finished"],
            )  # fmt: skip
            future.add_done_callback(lambda _: heard.put({"what": DONE}))
            shown = _Shown(turn.progress, self.watch, name)
            try:
                reply = self._outcome(future, heard, shown, where)
            except CancelledError:
                if self._is_same_scheduler(client):  # but a machine went, with a mark
                    client, near = None, ()
                    continue
                # it knows nothing of it when it is back
                turn.progress.say("the scheduler was lost; asking again")
                continue
            except _Gone:  # or started again, at other addresses
                self._running.pop(name, None)  # nobody is left to tell that it ended
                client = None
                continue
            except address.dask().KilledWorker as error:
                self._running.pop(name, None)
                n_killed += 1  # Dask counts the steps that waited there, too
                if max(shown.n_begun, n_killed) >= DEATHS:
                    return Reply(str(error.last_worker.name), failure=_death())
                client = None
                continue
            finally:
                future.cancel(msg="stopped")
            if not reply.was_stopped:
                self._running.pop(name, None)
                return reply
            client = None

    def _mark(self, step: str, machine: str) -> None:
        """Tell Dask where the files of a step are, by a datum of a few bytes that it keeps there.

        A call that takes it goes there, or is taken over by an idle worker, as Dask does it.
        """
        with contextlib.suppress(Exception):  # it is for speed alone
            where = [at for at, own in self._info().items() if str(own["name"]) == machine]
            client = self._connected()
            (mark,) = client.scatter([step], workers=where, hash=False, timeout=FETCH_S)
            self._marks[step] = mark

    def _is_same_scheduler(self, client: Any) -> bool:
        """Whether a client is connected to the scheduler that it began with."""
        with contextlib.suppress(Exception):
            if client.status == "running" and client is self._client:
                return bool(client.scheduler_info(n_workers=1)["id"] == self._scheduler_id)
        return False

    def _addresses(self, names: Sequence[str]) -> list[str]:
        """Return where workers are; wait a little for one that starts again, else raise _Gone."""
        until = time.monotonic() + BACK_S
        while time.monotonic() < until:
            interrupt.check()
            if found := [at for at, own in self._info().items() if str(own["name"]) in names]:
                return found
            time.sleep(LOOK_S)
        raise _Gone

    def _outcome(
        self, future: Any, heard: "queue.SimpleQueue[Event]", shown: "_Shown", where: Sequence[str]
    ) -> Reply:
        """Wait for a future, and pass on what is heard of it.

        Raises _Gone once the workers `where` are not there any more: a future that is bound to
        them is never given to others, nor to a worker that comes later.
        """
        with contextlib.closing(shown):
            shown.state(WAITING, "")
            while True:
                interrupt.check()
                if future.done():
                    while not heard.empty():
                        shown.show(heard.get())
                    if future.status in ("cancelled", "lost"):
                        raise CancelledError
                    with contextlib.suppress(TimeoutError):  # a worker went with the result
                        reply: Reply = future.result(timeout=FETCH_S)
                        return reply
                elif where and self._info().keys().isdisjoint(where):
                    raise _Gone
                with contextlib.suppress(queue.Empty):  # of many that wait each wakes up
                    shown.show(heard.get(timeout=WAKE_S))


class _Shown:
    """What workers tell of a step, on this side's terminal and in the study's status."""

    def __init__(self, terminal: Progress, watch: Watch | None, name: str):
        self._progress, self._watch, self._name = terminal, watch, name
        self._task: tuple[str, progress.Task] | None = None
        self._stack = contextlib.ExitStack()
        self.n_begun = 0

    def close(self) -> None:
        """Take the task off the terminal."""
        self._stack.close()
        self._task = None

    def state(self, state: str, machine: str) -> None:
        """Write whether a step runs, and where."""
        if self._watch and self._watch.knows(self._name):
            self._watch.placed(self._name, state, machine)

    def show(self, event: Event) -> None:
        """Show one message."""
        if event["what"] == BEGAN:
            self.n_begun += 1
            self.state(RUNNING, event["machine"])
        elif event["what"] == SAYS:
            self._progress.say(event["text"])
        elif event["what"] == TASK:
            if self._task is None or self._task[0] != event["task"]:
                self.close()
                opened = self._progress.task(event["task"], event["total"], event["unit"])
                self._task = event["task"], self._stack.enter_context(opened)
            self._task[1].update(event["done"], event["note"])


def _class(resources: Mapping[str, float]) -> str:
    return next((name for name in resources if name.startswith("class ")), "")


def _death() -> Failure:
    what = "the processes that ran it died again and again"
    fix = "look at the workers' own output: there may be too little memory"
    return Failure(what, None, fix, False, False, what)


def _error(failure: Failure, log: Path | None) -> ImatrixLabError:
    fix = f"read {log}" if failure.is_bug and log else failure.fix
    return ImatrixLabError(failure.what, where=failure.where, fix=fix)


@contextlib.contextmanager
def _nonces(*folders: Path) -> Iterator[dict[str, str]]:
    """Put a file into each folder, by which other machines can tell that they see it."""
    texts = {}
    try:
        for folder in folders:
            path = folder / f".seen-{secrets.token_hex(6)}"
            texts[str(path)] = secrets.token_hex(16)
            path.write_text(texts[str(path)], encoding="utf-8")
        yield texts
    finally:
        for name in texts:
            Path(name).unlink(missing_ok=True)
