"""The commands that make things: tune, model, quant."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from imatrix_lab import languages, pipeline, plan
from imatrix_lab.cli import options
from imatrix_lab.cli.terminal import duration, stderr, stdout
from imatrix_lab.errors import UsageError
from imatrix_lab.quick import run as quick
from imatrix_lab.quick.answer import Answer, sentence
from imatrix_lab.quick.answer import as_json as as_plain
from imatrix_lab.records import TOKENS_DEFAULT, QuantFacts


@click.command()
@click.argument("text", metavar="LANGUAGE", required=False)
@options.TYPES
@options.MODEL
@options.TOKENS
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("quants"),
    show_default=True,
    help="Folder for the finished files.",
)
@options.COMPUTE
@click.option("--parse-special", is_flag=True, help="The text has chat tokens: tokenize them so.")
@click.option("--allow-requantize", is_flag=True, help="Accept a model that is quantized already.")
@click.option(
    "--quick/--no-quick",
    default=None,
    help="Say what the tuning bought, on a few documents. [default: if that is quick]",
)
@click.option(
    "--study",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A study whose comparisons go into the model card.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan: steps, sizes, what is cached.")
@options.JSON
def tune(text: str | None, types: Any, dry_run: bool, as_json: bool, **rest: Any) -> None:
    """Text in LANGUAGE to tuned GGUF files: corpus, imatrix, quants. What `make quant` runs.

    LANGUAGE may be a mixture too (multi10, or nb=0.75,en=0.25), or a folder that `corpus build`
    printed.

    \b
    Example:
      imatrix-lab tune nb --type Q4_K_M --model model-f16.gguf --tokens 65536 --out quants
    """  # fmt: skip
    if not text:
        raise UsageError(
            "which language? make quant LANG=nb, or: imatrix-lab tune nb",
            fix="one of:\n"
            + "\n".join(f"    {c:3} {n.name}" for c, n in languages.load_all().items()),
        )
    store, terminal = options.surroundings()
    request = options.request(options.language(text, terminal), types, **rest)
    if dry_run:
        steps = plan.plan(request, store, terminal)
        return options.emit(steps) if as_json else _print_plan(steps)
    watch = quick.Watch(terminal)
    result = pipeline.tune(request, store, watch)
    if not as_json:
        _print_quants(result.quants, result.files)
    found = quick.answer(request, result, store, watch)
    if as_json:
        return options.emit({**vars(result), "quick": as_plain(found) if found else None})
    if found:
        _print_answer(found, request.types[1:])


def _print_plan(steps: list[plan.Step]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("step", "state", "detail"):
        table.add_column(name, overflow="fold")
    for step in steps:
        table.add_row(step.name, "cached" if step.cached else "to do", step.detail)
    stdout.print(table)


def _print_quants(quants: tuple[QuantFacts, ...], files: tuple[Path, ...]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("file", overflow="fold")
    for name in ("size", "bits/weight", "fallback", "perplexity", "original", "time"):
        table.add_column(name, justify="right")
    for q, path in zip(quants, files, strict=True):
        table.add_row(
            escape(path.name), f"{q.size_bytes / 2**20:.2f} MiB", f"{q.bits_per_weight:.2f}",
            f"{len(q.fallback)} of {q.n_tensors}", f"{q.perplexity:.4f}",
            f"{q.perplexity_reference:.4f}", "cached" if q.seconds is None else duration(q.seconds),
        )  # fmt: skip
    stdout.print(table)
    for q in quants:
        for line in q.fallback[:5]:
            stderr.print(f"fallback in {q.type}: {line}", markup=False)
    stderr.print(f"in {files[0].parent}/, with manifest.json and README.md", markup=False)
    windows = f"perplexity over {quants[0].n_windows} held-out windows"
    stderr.print(f"{windows}: a check that it works, not a benchmark", style="dim")


def _print_answer(found: Answer, other_types: tuple[str, ...]) -> None:
    stdout.print(sentence(found), markup=False, soft_wrap=True)
    said = f"{', '.join(other_types)} not scored; " if other_types else ""
    stderr.print(f"{said}one text an imatrix: imatrix-lab study run tells more", style="dim")


@click.group()
def model() -> None:
    """Fetch models and see what is in them."""


@model.command("show")
@click.argument("spec", metavar="MODEL")
@options.JSON
def model_show(spec: str, as_json: bool) -> None:
    """Architecture, size, types, and which tensors a k-quant would not fit.

    \b
    Example:
      imatrix-lab model show demo
    """
    found = pipeline.resolve(spec, *options.surroundings())
    if as_json:
        return options.emit(dataclasses.asdict(found))
    facts = dataclasses.asdict(found.facts)
    fallback, types = facts.pop("fallback"), facts.pop("tensor_types")
    facts["size_bytes"] = f"{found.facts.size_bytes:,} ({found.facts.size_bytes / 2**30:.2f} GiB)"
    facts["n_parameters"] = f"{found.facts.n_parameters:,}"
    facts["bits_per_weight"] = f"{found.facts.bits_per_weight:.2f}"
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in {"path": found.path, "sha256": found.sha256, **facts}.items():
        table.add_row(key, escape(str(value)))
    table.add_row("tensors", ", ".join(f"{n} {t}" for t, n in types.items()))
    words = "none: every tensor takes a k-quant"
    if fallback:
        words = f"{len(fallback)} tensors have rows that are no multiple of 256: " + ", ".join(
            fallback[:4]
        )
    table.add_row("fallback", words + (" …" if len(fallback) > 4 else ""))
    stdout.print(table)


@model.command("fetch")
@click.argument("spec", metavar="MODEL")
def model_fetch(spec: str) -> None:
    """Fetch or prepare a model; print its path.

    \b
    Example:
      imatrix-lab model fetch hf:org/repo@main:model-f16.gguf
    """
    click.echo(pipeline.resolve(spec, *options.surroundings()).path)


@click.command()
@options.MODEL
@click.option(
    "--imatrix",
    "imatrix_path",
    required=True,
    metavar="FILE",
    help="An importance matrix, GGUF or .dat, or none.",
)
@options.TYPES
@click.option(
    "--heldout",
    metavar="TEXT",
    help="Language or text file to verify with. [default: the imatrix's language]",
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("quants"), show_default=True)
@options.COMPUTE
@click.option("--allow-requantize", is_flag=True, help="Accept a model that is quantized already.")
@click.option("--force", is_flag=True, help="Use an imatrix that fails its check; it is recorded.")
@options.JSON
def quant(
    model: str, imatrix_path: str, types: Any, heldout: str | None, as_json: bool, **rest: Any
) -> None:
    """Quantize with an importance matrix that is there already.

    \b
    Example:
      imatrix-lab quant --model model-f16.gguf --imatrix nb.imatrix.gguf --type "Q4_K_M Q3_K_S"
    """  # fmt: skip
    store, terminal = options.surroundings()
    request = options.request(heldout or "", types, model=model, n_tokens=TOKENS_DEFAULT, **rest)
    source = None if imatrix_path == "none" else Path(imatrix_path)
    result = pipeline.quants(request, source, store, terminal)
    if as_json:
        return options.emit(result)
    _print_quants(result.quants, result.files)
