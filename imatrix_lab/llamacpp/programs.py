"""llama.cpp's command lines, and parsers of what its programs print; nothing is run here."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

COMMIT = "0c1e57098"
"""The llama.cpp commit that llama-cpp-python 0.3.36 vendors."""

PROGRAMS = (
    "llama-imatrix", "llama-quantize", "llama-perplexity", "llama-gguf-split", "llama-bench",
    "llama-fit-params", "llama-server", "ggml-rpc-server",
)  # fmt: skip

QUANT_TYPES = (
    "F32", "F16", "BF16", "Q8_0", "Q6_K",
    "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0",
    "Q4_K_M", "Q4_K_S", "IQ4_NL", "IQ4_XS", "Q4_1", "Q4_0", "MXFP4_MOE",
    "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS",
    "Q2_K", "Q2_K_S", "Q2_0", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS",
    "TQ2_0", "TQ1_0", "Q1_0", "IQ1_M", "IQ1_S",
)  # fmt: skip
"""File types of llama-quantize at `COMMIT`, from many bits to few."""
NEED_IMATRIX = frozenset(
    ("Q2_K_S", "IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_M", "IQ1_S")
)
"""Types that llama-quantize makes of no model without an imatrix."""
NEED_EVERY_LAYER = NEED_IMATRIX | {"IQ3_XS"}
"""Types that it does not make where the imatrix lacks a layer."""

ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

OVERRIDE_BYTES_MAX = 127
"""llama-quantize refuses longer ``--override-kv`` strings, and truncates its own."""


_NO_END = ("--override-kv", "tokenizer.ggml.add_eos_token=bool:false")


class Placement(NamedTuple):
    """Which tensors lie on GPUs, as values of llama.cpp's options.

    `gpu_layers` 0 uses no GPU at all; None is all layers in process, and what fits for programs.
    """

    gpu_layers: int | None = None
    tensor_split: str = ""
    override_tensor: str = ""

    def argv(self) -> list[str]:
        """Return options; nothing where a program may choose."""
        argv = [] if self.gpu_layers is None else ["-ngl", str(self.gpu_layers)]
        argv += ["-dev", "none"] if self.gpu_layers == 0 else []
        argv += ["-ts", self.tensor_split] if self.tensor_split else []
        return argv + (["-ot", self.override_tensor] if self.override_tensor else [])

    def signature(self) -> dict[str, int | str | None]:
        """Return what can change bits: the layers, and the rest where it says something."""
        rest = {name: value for name, value in self._asdict().items() if value}
        return {"gpu_layers": self.gpu_layers} | rest


EVERYWHERE = Placement()
"""Nothing is said: all layers in process, what fits for programs."""


class Placed:
    """Base of settings that hold the values of a `Placement`."""

    gpu_layers: int | None
    tensor_split: str
    override_tensor: str

    @property
    def placement(self) -> Placement:
        """Where the model's tensors lie."""
        return Placement(self.gpu_layers, self.tensor_split, self.override_tensor)


@dataclass(frozen=True)
class Compute(Placed):
    """How a program may use the machine.

    `n_batch`, the tokens of a decode, is a multiple of the window when larger: several windows at
    once. For the last three see `Placement`.
    """

    threads: int
    n_ctx: int = 512
    n_batch: int = 512
    n_ubatch: int = 512
    gpu_layers: int | None = None
    tensor_split: str = ""
    override_tensor: str = ""

    def argv(self) -> list[str]:
        """Return the options that llama.cpp's programs share.

        Weights are not repacked, as in process: programs and engine multiply alike. Texts get no
        end token: llama-imatrix and llama-perplexity abort on models that add one.
        """
        args = ["-t", self.threads, "-c", self.n_ctx, "-b", self.n_batch, "-ub", self.n_ubatch]
        return [*map(str, args), *_NO_END, "--no-repack", *self.placement.argv()]


@dataclass(frozen=True)
class QuantizeOptions:
    """What llama-quantize is told besides model, output and type; `types` is a file's name."""

    threads: int
    imatrix: str | None = None
    metadata: Mapping[str, str | int] = field(default_factory=dict)
    allow_requantize: bool = False
    types: str | None = None


def quantize_argv(
    program: Path, model: Path, out: Path | None, quant_type: str, options: QuantizeOptions
) -> list[str]:
    """Return a llama-quantize command; a dry run when `out` is None.

    Raises ValueError for a metadata value that llama-quantize would refuse.
    """
    argv = [str(program), *([] if out else ["--dry-run"])]
    argv += ["--allow-requantize"] if options.allow_requantize else []
    argv += ["--imatrix", options.imatrix] if options.imatrix else []
    argv += ["--tensor-type-file", options.types] if options.types else []
    for key, value in options.metadata.items():
        kind, text = "int" if isinstance(value, int) else "str", str(value)
        if len(text.encode()) > OVERRIDE_BYTES_MAX:
            raise ValueError(f"{key} is longer than {OVERRIDE_BYTES_MAX} bytes: {text}")
        argv += ["--override-kv", f"{key}={kind}:{text}"]
    return [*argv, str(model), *([str(out)] if out else []), quant_type, str(options.threads)]


def types_file(types: Mapping[str, str]) -> str:
    """Return the text of a ``--tensor-type-file``: a line for each tensor, in order of name.

    Names are patterns that are looked for anywhere in a name, and are put into lower case: each is
    anchored, and a capital or a sign is any character.
    """
    lines = (f"^{_pattern(name)}$={types[name].lower()}\n" for name in sorted(types))
    return "".join(lines)


def _pattern(name: str) -> str:
    plain = re.compile("[a-z0-9_]")
    return "".join(c if plain.match(c) else "\\." if c == "." else "." for c in name)


def perplexity_argv(
    program: Path, model: Path, text: Path, compute: Compute, *, n_windows: int
) -> list[str]:
    """Return a llama-perplexity command for the first windows of a text."""
    argv = [str(program), "-m", str(model), "-f", str(text), *compute.argv()]
    return [*argv, "--chunks", str(n_windows), "--no-warmup"]


def server_argv(
    program: Path, model: Path, parallel: int, n_ctx: int, threads: int | None, placement: Placement
) -> list[str]:
    """Return a llama-server command, on loopback at a port of the system's choice.

    Flash attention and repacked weights are off, as in process: with them the last bits of an
    answer depend on what else is answered at the time. `n_ctx` is for one prompt and its answer.
    What is not placed is fitted into the GPUs' memory by the server itself.
    """
    fit = "on" if placement == EVERYWHERE else "off"
    argv = [str(program), "-m", str(model), "--host", "127.0.0.1", "--port", "0", "--offline"]
    argv += ["-np", str(parallel), "-c", str(parallel * -(-n_ctx // 256) * 256), "-fit", fit]
    argv += ["-fa", "off", "--no-repack", "--cache-ram", "0", *_NO_END]
    argv += ["-t", str(threads)] if threads else []
    return [*argv, *placement.argv()]


def fit_argv(
    program: Path, model: Path, n_ctx: int, n_batch: int, n_sequences: int, *more: str
) -> list[str]:
    """Return a llama-fit-params command for a decode of `n_batch` tokens at once."""
    argv = [str(program), "-m", str(model), "-c", str(n_ctx), "-b", str(n_batch)]
    argv += ["-ub", str(n_batch), "-np", str(n_sequences), "-fa", "off", "--no-repack"]
    return [*argv, *more]


WINDOW = re.compile(r"\[(\d+)\](-?(?:[\d.]+|nan|inf)),")
_FINAL = re.compile(r"Final estimate: PPL = (-?(?:[\d.]+|nan|inf))")
TENSOR = re.compile(r"\[ *(\d+)/ *(\d+)\] ")
_FALLBACK = re.compile(
    r"warning: (\S+) +- ncols +(\d+) not divisible by +(\d+) \(required for type +(\w+)\)"
    r".*?-> falling back to +(\w+)",
    re.DOTALL,
)
_PLANNED = re.compile(r"^\[ *\d+/ *\d+\] +(\S+) +- \[.*-> .* MiB \((\w+)\)$", re.MULTILINE)
_QUANT_SIZE = re.compile(r"quant size += +([\d.]+) MiB \(([\d.]+) BPW\)")
NINJA = re.compile(r"\[(\d+)/(\d+)\]")
_WARNING = re.compile(r"^[\d.]+ W (.*)", re.MULTILINE)
_TOLD = re.compile(r"[A-Z* !]*|missing pre-tokenizer.*|entry '.*|storing only .*")
"""Warnings that are told in other words: from the header, and of tensors without data."""
_FITTED = re.compile(r'^-c \d+ -ngl (-?\d+)(?: -ts (\S+))?(?: -ot "(.+)")?$', re.MULTILINE)
_MEMORY = re.compile(r"^(\S+) (\d+) (\d+) (\d+) *$", re.MULTILINE)
_VERSION = re.compile(r"version: .*?\b([0-9a-f]{7,40})\b\)?")
_COMPILER = re.compile(r"built with (.+)")


class Steps:
    """Finds the last ``[i]`` (`WINDOW`) or ``[i/n]`` in output that arrives in pieces."""

    def __init__(self, pattern: re.Pattern[str]):
        self._pattern, self._rest = pattern, ""
        self.last = self.total = 0

    def feed(self, piece: str) -> int:
        """Take a piece of output; return the last step so far."""
        text, end = self._rest + piece, 0
        for match in self._pattern.finditer(text):
            self.last, end = int(match[1]), match.end()
            self.total = 0 if self._pattern is WINDOW else int(match[2])
        self._rest = text[max(end, len(text) - 200) :]
        return self.last


def final_perplexity(output: str, n_windows: int) -> float | None:
    """Return the perplexity after `n_windows` windows, or None if the output does not have it.

    llama.cpp's programs print from a thread that is not waited for, so the last lines of a
    successful run can be missing. The running value of the last window is the final one.
    """
    values = {int(i): float(value) for i, value in WINDOW.findall(output)}
    match = _FINAL.search(output)
    return float(match[1]) if match else values.get(n_windows)


def fallbacks(output: str) -> tuple[tuple[str, str, str], ...]:
    """Return (tensor, requested type, type it got) of llama-quantize's fallback warnings."""
    return tuple((m[1], m[4], m[5]) for m in _FALLBACK.finditer(output))


def quant_size(output: str) -> tuple[int, float] | None:
    """Return size in bytes (to 0.01 MiB) and bits per weight, as llama-quantize prints them."""
    matches = _QUANT_SIZE.findall(output)
    return (round(float(matches[-1][0]) * 2**20), float(matches[-1][1])) if matches else None


def fitted(output: str) -> Placement | None:
    """Return what llama-fit-params suggests; None if it says nothing."""
    if not (match := _FITTED.search(output)):
        return None
    layers = int(match[1])
    return Placement(layers if layers >= 0 else None, match[2] or "", match[3] or "")


def memory_mib(output: str) -> dict[str, tuple[int, int]]:
    """Return MiB of weights, and of all else, by device; of main memory as ``Host``."""
    return {m[1]: (int(m[2]), int(m[3]) + int(m[4])) for m in _MEMORY.finditer(output)}


def planned_types(output: str) -> dict[str, str]:
    """Return the type that each tensor would be quantized to, from a dry run."""
    return {m[1]: m[2].upper() for m in _PLANNED.finditer(output)}


def warnings(output: str) -> tuple[str, ...]:
    """Return what a program warns of, each kind of warning once."""
    return distinct(match[1] for match in _WARNING.finditer(output))


def distinct(lines: Iterable[str]) -> tuple[str, ...]:
    """Return warnings without the names of functions; of those that differ in names, the first."""
    kinds: dict[str, list[str]] = {}
    for line in lines:
        text = re.sub(r"^\w+:\s*", "", line.strip())
        if not _TOLD.fullmatch(text):
            kinds.setdefault(re.sub(r"'[^']*'|\d+|\S*\.\S+", "", text), []).append(text)
    return tuple(
        first + (f" (and {len(more)} more like it)" if more else "")
        for first, *more in kinds.values()
    )


def reason(errors: Iterable[str]) -> str:
    """Return why a model was not loaded, from the library's error messages, or ""."""
    lines = [re.sub(r"^(\w+: )*(error loading model: )?", "", line) for line in errors]
    told = [line for line in lines if line and not line.startswith("failed to load model")]
    return "; ".join(dict.fromkeys(told))


def version_of(output: str) -> tuple[str, str] | None:
    """Return (commit, compiler) from ``--version``."""
    commit, compiler = _VERSION.search(output), _COMPILER.search(output)
    return (commit[1], compiler[1].strip() if compiler else "unknown") if commit else None


def quant_types(words: Sequence[str], more: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the canonical names of quant types, in the order given, each once.

    Raises KeyError for a type that is neither llama-quantize's nor one `more`.
    """
    known = {t: t for t in (*QUANT_TYPES, *more)}
    return tuple(dict.fromkeys(known[ALIASES.get(w.upper(), w.upper())] for w in words))
