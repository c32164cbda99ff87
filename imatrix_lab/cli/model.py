"""``imatrix-lab model``: fetch models, and show what is in them."""

import dataclasses

import click
from rich.markup import escape

from imatrix_lab.cli import options
from imatrix_lab.cli.terminal import new_table, stdout
from imatrix_lab.core.format import size
from imatrix_lab.types import Model


@click.group()
def model() -> None:
    """Fetch models, and show what is in them."""


@model.command("show")
@click.argument("spec", metavar="MODEL")
@options.JSON
def model_show(spec: str, as_json: bool) -> None:
    """Show architecture, size, types, and tensors that cannot take a k-quant.

    \b
    Example:
      imatrix-lab model show demo
    """
    from imatrix_lab.models.resolve import resolve

    resolved = resolve(spec, options.session())
    if as_json:
        return options.emit(dataclasses.asdict(resolved))
    _print(resolved)


def _print(resolved: Model) -> None:
    facts = resolved.facts
    rows = {"path": resolved.path, "sha256": resolved.sha256, **vars(facts)}
    rows["size_bytes"] = f"{facts.size_bytes:,} ({size(facts.size_bytes)})"
    rows["n_parameters"] = f"{facts.n_parameters:,}"
    rows["bits_per_weight"] = f"{facts.bits_per_weight:.2f}"
    del rows["tensor_types"], rows["fallback"]
    rows["tensors"] = ", ".join(f"{n} {t}" for t, n in facts.tensor_types.items())
    if not any(condition.stops for condition in facts.conditions):
        rows["fallback"] = "none: every tensor takes a k-quant"
    if facts.fallback:
        more = " …" if len(facts.fallback) > 4 else ""
        rows["fallback"] = (
            f"{len(facts.fallback)} tensors have rows that are no multiple of 256: "
            + ", ".join(facts.fallback[:4]) + more
        )  # fmt: skip
    del rows["conditions"]
    table = new_table("key", "value", n_text=2, header=False)
    for key, value in rows.items():
        table.add_row(key, escape(str(value)))
    stdout.print(table)
    for condition in facts.conditions:
        word = "cannot be run" if condition.stops else "note"
        click.echo(f"{word}: {condition}")


@model.command("fetch")
@click.argument("spec", metavar="MODEL")
def model_fetch(spec: str) -> None:
    """Fetch a model, convert it if necessary, and print its path.

    \b
    Example:
      imatrix-lab model fetch hf:org/repo@main:model-f16.gguf
    """
    from imatrix_lab.models.resolve import resolve

    options.echo(resolve(spec, options.session()).path)
