"""``imatrix-lab model``: fetch models, and see what is in them."""

import dataclasses

import click
from rich.markup import escape
from rich.table import Table

from imatrix_lab.cli import options
from imatrix_lab.cli.terminal import stdout
from imatrix_lab.core.format import size


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

    from imatrix_lab.models import convert

    found = convert.resolve(spec, options.session())
    if as_json:
        return options.emit(dataclasses.asdict(found))
    facts = dataclasses.asdict(found.facts)
    fallback, types = facts.pop("fallback"), facts.pop("tensor_types")
    facts["size_bytes"] = f"{found.facts.size_bytes:,} ({size(found.facts.size_bytes)})"
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

    from imatrix_lab.models import convert

    click.echo(convert.resolve(spec, options.session()).path)
