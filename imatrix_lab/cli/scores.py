"""Scoring quants, and showing what was scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from imatrix_lab import evaluate, toolchain
from imatrix_lab.cli import options
from imatrix_lab.records import ScoreRequest

_SEVERAL = ("--quant", "--text")


class _Score(click.Group):
    """A group that does its main work itself, and takes several words after some options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Turn ``--quant A B`` into ``--quant A --quant B``; a subcommand's words stay."""
        if args and args[0] in self.commands:
            return super().parse_args(ctx, args)
        spread: list[str] = []
        option = ""
        for word in args:
            if word.startswith("-"):
                option = word if word in _SEVERAL else ""
                spread += [] if option else [word]
            else:
                spread += [option, word] if option else [word]
        return super().parse_args(ctx, spread)


class _Text(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """``nb=heldout.jsonl``, a file, or a language."""

    name = "text"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, Path | None]:
        if isinstance(value, tuple):
            return value
        label, equals, file = str(value).partition("=")
        if equals:
            return label, Path(file)
        path = Path(value)
        return (path.stem, path) if path.exists() else (value, None)


@click.group(cls=_Score, invoke_without_command=True)
@click.option("--reference", metavar="MODEL", help="The full model: demo, a GGUF file, or hf:…")
@click.option(
    "--quant", "quants", multiple=True, metavar="FILE…", help="Quants of it; one or several."
)
@click.option(
    "--text", "texts", multiple=True, type=_Text(), metavar="NAME=FILE…",
    help="Held-out text: .jsonl (a document a line), .txt (one document), or a language alone.",
)  # fmt: skip
@click.option(
    "--protocol", type=click.Choice(["document", "llamacpp"]), default="document",
    show_default=True, help="document: every token once, in its document. llamacpp: as"
    " llama-perplexity, for comparison with published numbers.",
)  # fmt: skip
@click.option(
    "--ctx", "n_ctx", type=click.IntRange(32),
    help="Tokens in a window. [default: 1024; llamacpp: 512]",
)  # fmt: skip
@click.option(
    "--overlap",
    type=click.IntRange(1),
    help="Context from before, in later windows of a long document. [default: a quarter]",
)
@click.option("--limit", type=click.IntRange(1), help="Only the first so many documents.")
@click.option(
    "--teacher", type=click.Choice(["auto", "live", "cached"]), default="auto", show_default=True,
    help="live: all models in memory at once. cached: one at a time, the reference's distributions"
    " on disk, a lower bound of the divergence. auto: by memory.",
)  # fmt: skip
@click.option(
    "--rest-share",
    type=click.FloatRange(1e-6, 0.5),
    default=0.01,
    show_default=True,
    help="With cached: the probability that may be left outside the top K, on average.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("scores"), show_default=True,
    help="Folder for the records.",
)  # fmt: skip
@options.BACKEND
@click.option("--threads", type=click.IntRange(1), help="[default: the cores there are]")
@click.option(
    "--rows", "n_rows", type=click.IntRange(1),
    help="Rows of logits a decode; memory is 8 bytes x vocabulary x rows x models."
    " [default: by vocabulary and backend]",
)  # fmt: skip
@click.option("-ngl", "--gpu-layers", type=click.IntRange(0), help="Layers on the GPU.")
@options.JSON
@click.pass_context
def score(ctx: click.Context, /, as_json: bool, **rest: Any) -> None:
    """Score quants token by token against their full model, on held-out text.

    \b
    Example:
      imatrix-lab score --reference model-f16.gguf --quant nb-Q4_K_M.gguf en-Q4_K_M.gguf
          --text nb=heldout.jsonl ml
    """  # fmt: skip
    if ctx.invoked_subcommand:
        return
    for name, flag in (("reference", "--reference"), ("quants", "--quant"), ("texts", "--text")):
        if not rest[name]:
            raise click.UsageError(f"{flag} is missing; imatrix-lab score -h has an example")
    rest["backend"] = rest["backend"] or toolchain.default_backend()
    store, terminal = options.surroundings()
    files = evaluate.score(ScoreRequest(**rest), store, terminal)
    if as_json:
        return options.emit([str(f) for f in files])
    for file in files:
        click.echo(file)
