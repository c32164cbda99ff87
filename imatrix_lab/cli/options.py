"""Options shared by several commands, and printing results as JSON."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from imatrix_lab.cli.terminal import Terminal
from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.corpus import languages
from imatrix_lab.errors import UsageError
from imatrix_lab.llamacpp import programs, toolchain
from imatrix_lab.llamacpp.compute import WINDOW
from imatrix_lab.llamacpp.toolchain import default_backend
from imatrix_lab.types import TOKENS_DEFAULT, ComputeOptions, Request

F = TypeVar("F", bound=Callable[..., Any])


class Types(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Quant types: one word or several, separated by spaces or commas."""

    name = "type"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        """Return canonical names; an unknown one fails with the list."""
        if isinstance(value, tuple):
            return value
        words = str(value).replace(",", " ").split()
        try:
            return programs.quant_types(words)
        except KeyError as error:
            self.fail(f"{error} is not a quant type; one of: {' '.join(programs.QUANT_TYPES)}")


def several(options: list[Callable[[F], F]]) -> Callable[[F], F]:
    """Return one decorator for several options."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def spread(args: list[str], several: tuple[str, ...]) -> list[str]:
    """Return arguments with ``--quant A B`` turned into ``--quant A --quant B``."""
    spread_args: list[str] = []
    option = ""
    for word in args:
        if word.startswith("-"):
            name, equals, _ = word.partition("=")
            option = name if name in several else ""
            spread_args += [word] if equals or not option else []
        else:
            spread_args += [option, word] if option else [word]
    return spread_args


class Spread(click.Command):
    """A command that takes several words after an option that may be repeated."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Turn ``--quant A B`` into ``--quant A --quant B``."""
        several = [o for p in self.params if getattr(p, "multiple", False) for o in p.opts]
        return super().parse_args(ctx, spread(args, tuple(several)))


MODEL = click.option(
    "--model", default="demo", show_default=True, metavar="MODEL",
    help="demo, a path to a GGUF file, or hf:org/repo[@revision][:file].",
)  # fmt: skip
TYPES = click.option(
    "--type", "types", type=Types(), multiple=True, metavar="TYPE",
    help="Quant type, e.g. Q4_K_M; repeat for several. [default: Q4_K_M Q5_K_M]",
)  # fmt: skip
TOKENS = click.option(
    "--tokens", "n_tokens", type=click.IntRange(64), default=TOKENS_DEFAULT, show_default=True,
    help="Length of the calibration text in tokens of the model.",
)  # fmt: skip
JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
BACKEND = click.option(
    "--backend", type=click.Choice(list(toolchain.BACKENDS)),
    help="Backend of llama.cpp. [default: $BACKEND, else metal on Apple silicon, else cpu]",
)  # fmt: skip
THREADS = click.option("--threads", type=click.IntRange(1, 1024), help="[default: all cores]")
GPU_LAYERS = click.option("-ngl", "--gpu-layers", type=click.IntRange(0), help="Layers on the GPU.")
COMPUTE = several(
    [
        BACKEND,
        click.option("--ctx", "n_ctx", type=click.IntRange(32), default=WINDOW, show_default=True,
                     help="Context window in tokens."),
        THREADS,
        click.option("--batch", "n_batch", type=click.IntRange(32),
                     help="Batch in tokens: a multiple of --ctx, or less. [default: by memory]"),
        GPU_LAYERS,
    ]
)  # fmt: skip


def request(text: str, types: tuple[tuple[str, ...], ...], **rest: Any) -> Request:
    """Return the request that the options describe."""
    quant_types = tuple(dict.fromkeys(t for group in types for t in group)) or ("Q4_K_M", "Q5_K_M")
    compute = compute_options(rest)
    n_ctx, n_batch = compute.n_ctx or WINDOW, compute.n_batch
    if n_batch is not None and n_batch >= n_ctx and n_batch % n_ctx:
        raise click.UsageError(f"--batch {n_batch} is not a multiple of --ctx {n_ctx}")
    return Request(text, quant_types, compute=compute, out=rest.pop("out", Path()), **rest)


def compute_options(options: dict[str, Any]) -> ComputeOptions:
    """Take the options of `ComputeOptions` out of a command's options."""
    names = [field.name for field in dataclasses.fields(ComputeOptions)]
    values = {name: options.pop(name, None) for name in names}
    return ComputeOptions(**{**values, "backend": values["backend"] or default_backend()})


def language(word: str, progress: Progress) -> str:
    """Return the code of a language given by another name; any other word unchanged."""
    try:
        known = languages.get(word)
    except UsageError:
        return word
    if word != known.code:
        progress.say(f"{word} means {known.code}, {known.name}")
    return known.code


def session() -> Session:
    """Return the user's store, with progress on the terminal."""
    return Session(Store(), Terminal())


def emit(value: Any) -> None:
    """Print data on stdout as JSON; non-finite numbers become null."""
    text = json.dumps(value, default=lambda v: str(v) if isinstance(v, Path) else vars(v))
    plain = json.loads(text, parse_constant=lambda _: None)
    click.echo(json.dumps(plain, ensure_ascii=False, indent=1))
