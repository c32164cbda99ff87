"""Compare the cost of tasks with llama-server and llama-perplexity: same items and threads.

    make bench-task            demo model, 100 items, one round: about 14 minutes on 2 idle cores
    python tools/bench_task.py --items 200 --server-items 20 --rounds 3     more than an hour

Items are made of the English texts written for this project: some sentences and four
continuations, one of them true, after five solved items. The sides run in turn, so that a slow
spell of the machine hits all; ratios of CPU time are printed too, since other work disturbs the
clock. Times include loading, except for llama-server's choices, where only the requests are
timed.

llama-server returns the likelihood of what it generates, not of a prompt. Its two sides, both with
its prompt cache: `likelihood`, the option generated under a grammar that allows no other text;
`prompt only`, context and option evaluated and one token generated, which says nothing about the
option and is the least that a request can cost. `--swa-full` keeps what a sliding window drops, so
that a model with one (the demo model) can use more of the cache.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
import psutil
from common import children_cpu_s, multiple_choice_bytes

from imatrix_lab.core import paths, process
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.llamacpp import programs, server
from imatrix_lab.llamacpp.build import get_toolchain
from imatrix_lab.llamacpp.client import Client
from imatrix_lab.llamacpp.toolchain import Toolchain, cores, default_backend
from imatrix_lab.models import resolve
from imatrix_lab.score import generate, multiple_choice
from imatrix_lab.score.job import PARALLEL, Setup, prepare
from imatrix_lab.types import ChoiceItem, ComputeOptions, Generated, GenerateItem, Model

SHOTS, OPTIONS, OPTION_WORDS = 5, 4, 6
N_TOKENS = 48
CONTEXT = 1024

Side = tuple[int, Callable[[], object], Callable[[], float]]
"""How many items one call does, the call, and the CPU seconds of its process so far."""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--server-items", type=int, default=6, help="fewer: it is slow")
    parser.add_argument("--answers", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--only", choices=("choice", "generate"))
    arguments = parser.parse_args()
    store, quiet = Store(), Silent()
    tools = get_toolchain(default_backend(), Session(store, quiet))
    model = resolve.resolve(arguments.model, Session(store, quiet))
    options = ComputeOptions(default_backend(), arguments.threads)
    setup = prepare(tools, model, Session(store, quiet), options, PARALLEL)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(tools, model, setup, Path(folder), arguments.rounds)
        print(f"{model.label}, {arguments.threads} threads, {arguments.rounds} rounds")
        if arguments.only != "generate":
            bench.choices(arguments.items, arguments.server_items)
        if arguments.only != "choice":
            bench.answers(arguments.answers)


@dataclasses.dataclass(frozen=True)
class Bench:
    """One run of the benchmark."""

    tools: Toolchain
    model: Model
    setup: Setup
    folder: Path
    rounds: int

    def choices(self, n_items: int, n_server: int) -> None:
        """Compare items/s of multiple choice."""
        items, right = build_items(n_items)
        items_file = self.folder / "items.bin"
        tasks = [
            (i.prefix + i.context, [o.removeprefix(" ") for o in i.options], gold)
            for i, gold in zip(items, right, strict=True)
        ]
        items_file.write_bytes(multiple_choice_bytes(tasks))
        with contextlib.ExitStack() as stack:
            few = items[:n_server]
            sides: dict[str, Side] = {
                "in process": (n_items, lambda: self._ours(items), time.process_time),
                "llama-perplexity --multiple-choice": (
                    n_items,
                    lambda: self._perplexity(items_file),
                    children_cpu_s,
                ),
            }
            for more in ([], ["--swa-full"]):
                url, cpu_s = stack.enter_context(self._server(1, more))
                for what, ask in (("likelihood", likelihood), ("prompt only", prompt_only)):
                    name = " ".join(["llama-server", *more, f"({what})"])
                    ask_all = functools.partial(ask_options, url, few, ask)
                    sides[name] = (n_server, ask_all, cpu_s)
            self._in_turns(sides, "items")

    def answers(self, n_answers: int) -> None:
        """Compare tokens/s of generation, and whether answers depend on their order."""
        items = [
            GenerateItem(str(i), (("", item.context),), N_TOKENS)
            for i, item in enumerate(build_items(n_answers)[0])
        ]

        def ours(items: Sequence[GenerateItem]) -> list[Generated]:
            return list(generate.generate(self.tools, self.model, items, self.setup, Silent()))

        def theirs(items: Sequence[GenerateItem]) -> list[Generated]:
            with self._server(PARALLEL, []) as (url, _), Client(url, parallel=PARALLEL) as client:
                answers = list(client.generate(items))
            assert not any(answer.error for answer in answers), answers
            return answers

        print(f"{n_answers} answers of at most {N_TOKENS} tokens, {PARALLEL} at a time")
        texts: dict[str, dict[str, str]] = {}

        def timed(name: str, side: Callable[[Sequence[GenerateItem]], list[Generated]]) -> int:
            answers = side(items)
            texts[name] = {answer.id: answer.text for answer in answers}
            return sum(answer.n_tokens for answer in answers)

        sides: dict[str, Side] = {
            "in process": (0, lambda: timed("in process", ours), time.process_time),
            "llama-server": (0, lambda: timed("llama-server", theirs), children_cpu_s),
        }
        self._in_turns(sides, "tokens")
        for name, side in (("in process", ours), ("llama-server", theirs)):
            same = sum(answer.text == texts[name][answer.id] for answer in side(items[::-1]))
            print(f"{name}: {same} of {n_answers} answers are the same in reversed order")

    def _in_turns(self, sides: Mapping[str, Side], unit: str) -> None:
        """Run all sides in each round, and print rates and their ratios.

        A side without a number of items returns how many it did.
        """
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for turn in range(self.rounds):
            order = list(sides)
            for name in order if turn % 2 == 0 else order[::-1]:
                n, run, cpu_s = sides[name]
                began, cpu_began = time.monotonic(), cpu_s()
                n_done = run()
                seconds, cpu_seconds = time.monotonic() - began, cpu_s() - cpu_began
                count = n or float(str(n_done))
                rates[name].append((count / seconds, count / cpu_seconds))
                print(
                    f"  {name}: {count:.0f} {unit} in {seconds:.1f} s, CPU {cpu_seconds:.1f} s",
                    flush=True,
                )
        ours = rates.pop("in process")
        for name, theirs in rates.items():
            report(f"{unit}/s: {name}", ours, theirs)

    def _ours(self, items: Sequence[ChoiceItem]) -> None:
        scores = list(multiple_choice.score(self.tools, self.model, items, self.setup, Silent()))
        assert not any(f.error for f in scores)

    def _perplexity(self, items_file: Path) -> None:
        # one item a decode, its fastest here; it multiplies the context by -np
        settings = self.setup.engine
        compute = programs.Compute(settings.threads, 512, 512, 512, settings.gpu_layers)
        argv: list[str | Path] = [
            self.tools.program("llama-perplexity"),
            "-m",
            self.model.path,
            *compute.argv(),
        ]
        argv += ["-bf", items_file, "--multiple-choice", "-np", str(OPTIONS), "--no-warmup"]
        process.run(argv)

    @contextlib.contextmanager
    def _server(
        self, parallel: int, more: Sequence[str]
    ) -> Iterator[tuple[str, Callable[[], float]]]:
        """A llama-server as it comes; yield its address, and what tells its CPU seconds."""
        argv: list[str | Path] = [
            self.tools.program("llama-server"),
            "-m",
            self.model.path,
            "--port",
            "0",
        ]
        argv += ["--host", "127.0.0.1", "-np", str(parallel), "-c", str(parallel * CONTEXT), *more]
        argv += ["-t", str(self.setup.engine.threads)]
        if self.setup.engine.gpu_layers is not None:
            argv += ["-ngl", str(self.setup.engine.gpu_layers)]
        with process.background(argv, log=self.folder / f"server-{len(more)}.log") as running:
            url = f"http://127.0.0.1:{server.port_of(running)}"
            yield url, lambda: sum(psutil.Process(running.process.pid).cpu_times()[:2])


def ask_options(
    url: str, items: Sequence[ChoiceItem], body: Callable[[str, str], dict[str, Any]]
) -> None:
    """Send one request for each option, in order: their common prefix stays cached."""
    with httpx2.Client(trust_env=False, timeout=600) as http:
        for item in items:
            for option in item.options:
                request = body(item.prefix + item.context, option)
                request |= {"n_probs": 1, "temperature": 0, "cache_prompt": True}
                answer = http.post(url + "/completion", json=request)
                assert answer.json()["completion_probabilities"], answer.text


def likelihood(context: str, option: str) -> dict[str, Any]:
    """Return a request whose answer is the option, with the log-probability of each token."""
    return {"prompt": context, "n_predict": 64, "grammar": f"root ::= {json.dumps(option)}"}


def prompt_only(context: str, option: str) -> dict[str, Any]:
    """Return a request that evaluates the option without returning its likelihood."""
    return {"prompt": context + option, "n_predict": 1}


def build_items(n: int) -> tuple[list[ChoiceItem], list[int]]:
    """Return items with a five-shot prefix, and which option of each is true."""
    rng = random.Random(0)
    raw = (paths.data_dir("corpora") / "written" / "en" / "documents.jsonl").read_text("utf-8")
    texts = [json.loads(line)["text"] for line in raw.splitlines()]
    parts = []
    for text in texts:
        words = text.split()
        for start in range(0, len(words) - 50, 17):
            size = rng.randint(25, 45)
            context = " ".join(words[start : start + size])
            rest = words[start + size : start + size + OPTION_WORDS]
            if len(rest) == OPTION_WORDS:
                parts.append((context, " " + " ".join(rest)))
    rng.shuffle(parts)
    prefix = "".join(f"{context}{rest}\n\n" for context, rest in parts[:SHOTS])
    items, right = [], []
    for i, (context, rest) in enumerate(itertools.islice(itertools.cycle(parts[SHOTS:]), n)):
        options = [rest, *rng.sample([other for _, other in parts if other != rest], OPTIONS - 1)]
        rng.shuffle(options)
        items.append(ChoiceItem(str(i), prefix, context, tuple(options)))
        right.append(options.index(rest))
    return items, right


def report(
    name: str, ours: Sequence[tuple[float, float]], theirs: Sequence[tuple[float, float]]
) -> None:
    """Print the rates by the clock and their ratio, and the ratio by CPU time."""
    ratios = [[a / b for a, b in zip(x, y, strict=True)] for x, y in zip(ours, theirs, strict=True)]
    clock, cpu = (statistics.median(r) for r in zip(*ratios, strict=True))
    rates = (statistics.median(r[0] for r in side) for side in (theirs, ours))
    print("{}: {:.2f}, ours {:.2f}:".format(name, *rates), f"ratio {clock:.2f}, CPU {cpu:.2f}")


if __name__ == "__main__":
    main()
