"""Options shared by several commands, and printing results as JSON."""

import codecs
import contextlib
import dataclasses
import json
import math
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from imatrix_lab.cli.terminal import Terminal
from imatrix_lab.core.format import size_bytes
from imatrix_lab.core.names import HALVES, readable
from imatrix_lab.core.paths import expanded
from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.corpus import languages, mixture
from imatrix_lab.errors import UsageError
from imatrix_lab.llamacpp import programs, size_types, toolchain
from imatrix_lab.llamacpp.compute import WINDOW
from imatrix_lab.llamacpp.toolchain import default_backend
from imatrix_lab.types import TOKENS_DEFAULT, ComputeOptions, Request, TypeChoice

F = TypeVar("F", bound=Callable[..., Any])


class PathType(click.Path):  # type: ignore[type-arg,unused-ignore]
    """A path; ``~`` is the home folder in ``--out=~/x`` too, which shells leave as it is."""

    def __init__(self, **settings: Any):
        super().__init__(path_type=Path, **settings)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Expand the home folder, then check as `click.Path` does."""
        return super().convert(expanded(value), param, ctx)


class Types(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Quant types: one word or several, separated by spaces or commas.

    `more` names types that llama-quantize does not have.
    """

    name = "type"

    def __init__(self, more: tuple[str, ...] = ()):
        self.more = more

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        """Return canonical names; an unknown one fails with the list."""
        if isinstance(value, tuple):
            return value
        words = str(value).replace(",", " ").split()
        try:
            return programs.quant_types(words, self.more)
        except KeyError as error:
            known = (*programs.QUANT_TYPES, *self.more)
            self.fail(f"{error} is not a quant type; one of: {' '.join(known)}")


class Size(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number of bytes, such as 20GiB."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Return bytes."""
        try:
            return value if isinstance(value, int) else size_bytes(value)
        except ValueError as error:
            self.fail(str(error))


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


class Once(click.Command):
    """A command that refuses an option given twice, rather than ignore the first."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Raise `click.UsageError` for an option that may not be repeated."""
        _, _, given = self.make_parser(ctx).parse_args(list(args))
        for param in given:
            if isinstance(param, click.Option) and not param.multiple and given.count(param) > 1:
                raise click.UsageError(f"{param.opts[0]} is given twice")
        return super().parse_args(ctx, args)


def _name(ctx: Any, param: Any, value: str) -> str:
    """Return a name that GGUF and llama-quantize take."""
    if len(value.encode()) <= programs.OVERRIDE_BYTES_MAX and value.isprintable():
        return value
    raise click.BadParameter(f"one line of at most {programs.OVERRIDE_BYTES_MAX} bytes")


QUANTIZED_BY = click.option(
    "--quantized-by", default="", metavar="NAME", callback=_name,
    help="Your name, for the files' metadata (general.quantized_by) and the model card.",
)  # fmt: skip
MODEL = click.option(
    "--model", default="demo", show_default=True, metavar="MODEL",
    help="demo, a path to a GGUF file, or hf:org/repo[@revision][:type or file].",
)  # fmt: skip
TYPES = click.option(
    "--type", "types", type=Types(), multiple=True, metavar="TYPE",
    help="Quant type, e.g. Q4_K_M; repeat for several. [default: Q4_K_M Q5_K_M]",
)  # fmt: skip
SIZES = several(
    [
        click.option("--size", "sizes", multiple=True, metavar="SIZE",
                     help="The best file of this size: 3.5GiB, or as large as a type (Q4_K_M). The"
                     " type of each tensor is chosen by how much the language suffers from it;"
                     " repeat for several sizes."),
        click.option("--bits", type=click.FloatRange(0, min_open=True), multiple=True,
                     help="The same, in bits per weight over all tensors."),
        click.option("--for", "languages", metavar="LANG=WEIGHT,…",
                     help="Languages that a --size is for. [default: that of the imatrix]"),
        click.option("--at-least", multiple=True, metavar="ROLE=TYPE",
                     help="The smallest type of tensors with this role, e.g. token_embd=Q6_K."),
        click.option("--types", "tensor_types", default="", metavar="TYPES",
                     help="Types of tensors that a --size may use, e.g. Q4_K,Q6_K."
                     " [default: those that run fast on the backend]"),
        click.option("--no-worse-than", multiple=True, metavar="TYPE:LANGS",
                     help="Languages that a --size must not make worse, by prediction, than this"
                     " type does, e.g. Q4_K_M:ml,en."),
    ]
)  # fmt: skip
TOKENS = click.option(
    "--tokens", "n_tokens", type=click.IntRange(64), default=TOKENS_DEFAULT, show_default=True,
    help="Length of the calibration text in tokens of the model.",
)  # fmt: skip
FIELD = click.option(
    "--field", default="", metavar="NAME",
    help="Column with the text, in a file with rows. [default: text, content, or the only one]",
)  # fmt: skip
FORCE = click.option(
    "--force", is_flag=True,
    help="Replace files that are there and are something else; each is named first.",
)  # fmt: skip
JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
BACKEND = click.option(
    "--backend", type=click.Choice(list(toolchain.BACKENDS)),
    help="Backend of llama.cpp. [default: $BACKEND, else metal on Apple silicon, else cpu]",
)  # fmt: skip
THREADS = click.option("--threads", type=click.IntRange(1, 1024), help="[default: all cores]")
OFFLOAD = several(
    [
        click.option("-ngl", "--gpu-layers", type=click.IntRange(0),
                     help="Layers on the GPU; 0 uses none at all. [default: as many as fit]"),
        click.option("-ot", "--override-tensor", metavar="REGEX=BUFFER,…",
                     help="Where tensors lie whatever their layer, e.g. 'ffn_down=CPU'."),
        click.option("-ncmoe", "--n-cpu-moe", type=click.IntRange(1), metavar="N",
                     help="Experts of the first N layers stay in main memory."),
        click.option("-fitt", "--fit-target", "fit_target_mib", type=click.IntRange(0),
                     default=1024, show_default=True, metavar="MIB",
                     help="Memory of each GPU that stays free."),
    ]
)  # fmt: skip
COMPUTE = several(
    [
        BACKEND,
        click.option("--ctx", "n_ctx", type=click.IntRange(32), default=WINDOW, show_default=True,
                     help="Context window in tokens."),
        THREADS,
        click.option("--batch", "n_batch", type=click.IntRange(32),
                     help="Batch in tokens: a multiple of --ctx, or less. [default: by memory]"),
        OFFLOAD,
    ]
)  # fmt: skip


def request(text: str, types: tuple[tuple[str, ...], ...], **rest: Any) -> Request:
    """Return the request that the options describe."""
    quant_types = tuple(dict.fromkeys(t for group in types for t in group))
    quant_types += tuple(map(size_types.parse, rest.pop("sizes", ())))
    quant_types += tuple(size_types.parse(f"{bits:.12g}bpw") for bits in rest.pop("bits", ()))
    compute, choice = compute_options(rest), _choice(rest)
    n_ctx, n_batch = compute.n_ctx or WINDOW, compute.n_batch
    if n_batch is not None and n_batch >= n_ctx and n_batch % n_ctx:
        raise click.UsageError(f"--batch {n_batch} is not a multiple of --ctx {n_ctx}")
    quant_types = tuple(dict.fromkeys(quant_types)) or ("Q4_K_M", "Q5_K_M")
    out = rest.pop("out", Path())
    return Request(text, quant_types, compute=compute, out=out, choice=choice, **rest)


def _choice(options: dict[str, Any]) -> TypeChoice:
    """Take the options of `SIZES` out of a command's options."""
    weighted = [_weighted(word) for word in _words(options.pop("languages", None) or "")]
    at_least = [_pair(word, "=", "--at-least ROLE=TYPE") for word in options.pop("at_least", ())]
    no_worse_than = []
    for word in options.pop("no_worse_than", ()):
        standard, named = _pair(word, ":", "--no-worse-than Q4_K_M:ml,en")
        (quant_type,) = Types().convert(standard, None, None)
        codes = tuple(languages.get(w).code for w in _words(named))
        no_worse_than.append((quant_type, codes))
    return TypeChoice(
        tuple(weighted),
        tuple((role, type_name.upper()) for role, type_name in at_least),
        tuple(word.upper() for word in _words(options.pop("tensor_types", ""))),
        tuple(no_worse_than),
    )


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _pair(word: str, sign: str, example: str) -> tuple[str, str]:
    first, _, second = word.partition(sign)
    if not first or not second:
        raise UsageError(f"{word!r} has not both parts", fix=example)
    return first, second


def _weighted(word: str) -> tuple[str, float]:
    name, _, weight = word.partition("=")
    try:
        value = float(weight or 1)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        what = f"the weight of {name} is {weight!r}, not a positive number"
        raise UsageError(what, fix="--for nb=1,en=0.3")
    return languages.get(name).code, value


def compute_options(options: dict[str, Any]) -> ComputeOptions:
    """Take the options of `ComputeOptions` out of a command's options."""
    names = [field.name for field in dataclasses.fields(ComputeOptions)]
    values = {name: value for name in names if (value := options.pop(name, None)) is not None}
    placed = [values["override_tensor"]] if "override_tensor" in values else []
    placed += [f"blk\\.{i}{_EXPERTS}=CPU" for i in range(options.pop("n_cpu_moe", None) or 0)]
    backend = values.get("backend") or default_backend()
    return ComputeOptions(**{**values, "backend": backend, "override_tensor": ",".join(placed)})


_EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"  # as llama.cpp names them, common/common.h


def language(word: str, progress: Progress) -> str:
    """Return the code of a language given by another name; any other word unchanged.

    A file is taken for a language only if that is what our own files call it.
    """
    if Path(word).exists() and not languages.is_name(word):
        return word
    if (code := languages.code(word)) != word:
        progress.say(f"{readable(word)} means {code}, {languages.get(code).name}")
    return code


def imatrix_file(word: str | Path, session: Session, may_lack: bool = False) -> Path:
    """Return the path of an importance matrix, fetched if it is one on the Hub.

    Raises UsageError: there is no such file, unless it `may_lack`.
    """
    from imatrix_lab.models import hub, hub_spec

    if not hub_spec.is_spec(str(word)):
        path = expanded(str(word))
        if not (may_lack or path.exists()):
            raise no_imatrix(str(word))
        return path
    return hub.fetch_imatrix(hub_spec.parse(str(word)), session)


def no_imatrix(name: str) -> UsageError:
    """Return the error for an importance matrix that is not there; a language's can be built."""
    fix = "check the path"
    with contextlib.suppress(UsageError):
        mixture.parse(languages.code(name))
        fix = f"imatrix-lab imatrix build --model MODEL --corpus {shlex.quote(name)}"
        fix += f" --out {shlex.quote(f'{name}.gguf')}"
    return UsageError(f"no file {readable(name)!r}; an imatrix is a file", fix=fix)


def session() -> Session:
    """Return the user's store, with progress on the terminal."""
    return Session(Store(), Terminal())


def emit(value: Any) -> None:
    """Print data on stdout as JSON; non-finite numbers become null.

    Names of files whose bytes are no UTF-8 are readable, not usable: JSON is text.
    """
    text = json.dumps(value, default=lambda v: str(v) if isinstance(v, Path) else vars(v))
    plain = _readable(json.loads(text, parse_constant=lambda _: None))
    is_utf8 = codecs.lookup(sys.stdout.encoding or "ascii").name == "utf-8"
    click.echo(json.dumps(plain, ensure_ascii=not is_utf8, indent=1))


def _readable(value: Any) -> Any:
    """Return JSON values without halves of characters."""
    match value:
        case str():
            return value if value.isprintable() else HALVES.sub(lambda m: readable(m[0]), value)
        case list():
            return [_readable(v) for v in value]
        case dict():
            return {_readable(k): _readable(v) for k, v in value.items()}
    return value


def echo(*paths: Path) -> None:
    """Print paths on stdout for scripts: their bytes, whatever the terminal's encoding is."""
    for path in paths:
        click.echo(os.fsencode(path))
