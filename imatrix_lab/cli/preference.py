"""``imatrix-lab preference``: a page for blind votes, and what the votes say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imatrix_lab.cli import options
from imatrix_lab.cli.terminal import new_table, stderr, stdout

if TYPE_CHECKING:
    from imatrix_lab.publish.preference.votes import Tally


@click.group()
def preference() -> None:
    """Blind votes: which quant's answers do people prefer?"""


@preference.command()
@click.option("--prompts", required=True, metavar="FILE|LANG",
              help="A language that the project has prompts for, or a TOML file.")  # fmt: skip
@click.option(
    "--a", "a", required=True, metavar="MODEL", help="The first model, e.g. the original."
)
@click.option("--b", "b", required=True, metavar="MODEL", help="The model to compare it with.")
@click.option("--c", "c", multiple=True, metavar="MODEL", help="A further one; may be repeated.")
@click.option("--out", required=True, type=options.PathType(), metavar="FILE.html",
              help="The page; its key goes beside it.")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(1), default=300, show_default=True,
              help="Length of an answer at most.")  # fmt: skip
@click.option("--parallel", type=click.IntRange(1, 256), default=16, show_default=True,
              help="Answers at a time.")  # fmt: skip
@options.BACKEND
@options.THREADS
@options.OFFLOAD
@options.FORCE
def make(
    prompts: str, a: str, b: str, c: tuple[str, ...], out: Path, **rest: Any
) -> None:  # fmt: skip
    """Let models answer prompts, and write a page to vote on: one file, no network needed.

    Send the page to people; keep the key, which says which model gave which answer.

    \b
    Example:
      imatrix-lab preference make --prompts nb --a base.gguf --b base-nb-Q3_K_M.gguf --out vote.html
    """
    from imatrix_lab.publish.preference.pack import PackRequest
    from imatrix_lab.publish.preference.pack import make as make_pack
    from imatrix_lab.publish.preference.prompts import read

    compute = options.compute_options(rest)
    request = PackRequest(read(prompts), (a, b, *c), out, compute, **rest)
    key = make_pack(request, options.session())
    n_alike = len(key.identical)
    alike = f"; {n_alike:,} pairs of answers are the same text and are not shown" if n_alike else ""
    stderr.print(f"{len(key.prompts):,} prompts{alike}", markup=False, soft_wrap=True)
    stderr.print(f"keep the key: {request.key_path()}", markup=False, soft_wrap=True)
    options.echo(out)


@preference.command()
@click.argument("votes", nargs=-1, required=True, type=options.PathType(), metavar="VOTES.json …")
@click.option("--key", "key_path", required=True, type=options.PathType(), metavar="FILE",
              help="The page's key.")  # fmt: skip
@click.option("--margin", type=click.FloatRange(0, 100, min_open=True), metavar="POINTS",
              help="Smallest difference in wins that matters, in points.")  # fmt: skip
@options.JSON
def tally(votes: tuple[Path, ...], key_path: Path, margin: float | None, as_json: bool) -> None:
    """Say what the votes of a page show, and how each person voted.

    \b
    Example:
      imatrix-lab preference tally votes/*.json --key vote.key.json --margin 10
    """
    from imatrix_lab.publish.preference.pack import read_key
    from imatrix_lab.publish.preference.votes import read_ballots, sentence
    from imatrix_lab.publish.preference.votes import tally as count

    key = read_key(key_path)
    result = count(read_ballots(votes, key), key, math.nan if margin is None else margin / 100)
    if as_json:
        return options.emit(_plain(result))
    for pair in result.pairs:
        click.echo(sentence(pair, result))
    _details(result)
    return None


def _plain(result: Tally) -> Any:
    from imatrix_lab.core import config

    return config.plain(result)


def _details(result: Tally) -> None:
    table = new_table(
        "person", "votes", "could not judge", "first answer", "repeats alike", "seconds"
    )
    for rater in result.raters:
        repeats = f"{rater.repeats_agree} of {rater.n_repeats}" if rater.n_repeats else ""
        table.add_row(
            rater.rater[:8], f"{rater.n_votes:,}", f"{rater.n_cannot:,}", _share(rater.first),
            repeats, "" if math.isnan(rater.seconds_median) else f"{rater.seconds_median:.0f}",
        )  # fmt: skip
    stdout.print(table)
    for pair in result.pairs:
        if not math.isnan(pair.alpha):
            names = " and ".join(str(result.systems[name]["name"]) for name in (pair.a, pair.b))
            stderr.print(f"agreement on {names}: Krippendorff's alpha {pair.alpha:.2f}",
                         markup=False, soft_wrap=True)  # fmt: skip
    for name, (strength, error) in result.strengths.items():
        stderr.print(f"{result.systems[name]['name']}: log strength {strength:+.2f} ± {error:.2f}",
                     markup=False, soft_wrap=True)  # fmt: skip
    if result.first_p <= 0.05:
        stderr.print(
            f"note: the answer shown first wins {_share(result.first_share)} of decided votes;"
            " the order is balanced, so neither model gains", markup=False, soft_wrap=True,
        )  # fmt: skip


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.0f} %"
