"""``imatrix-lab preference``: a page for blind votes, and what the votes say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from imatrix_lab.cli import options
from imatrix_lab.cli.task_judge import CHAT, chat_with
from imatrix_lab.cli.terminal import new_table, stderr, stdout
from imatrix_lab.core.format import with_error

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
@click.option(
    "--temperature",
    type=click.FloatRange(0, 5),
    default=0.0,
    metavar="T",
    help="Draw tokens at this temperature. [default: take the most probable ones]",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draws.")
@click.option("--parallel", type=click.IntRange(1, 256), default=16, show_default=True,
              help="Answers at a time.")  # fmt: skip
@options.BACKEND
@options.THREADS
@options.OFFLOAD
@options.FORCE
def make(
    prompts: str, a: str, b: str, c: tuple[str, ...], out: Path, temperature: float, seed: int,
    **rest: Any,
) -> None:  # fmt: skip
    """Let models answer prompts, and write a page to vote on: one file, no network needed.

    Send the page to people; keep the key, which says which model gave which answer.

    \b
    Example:
      imatrix-lab preference make --prompts nb --a base.gguf --b base-nb-Q3_K_M.gguf --out vote.html
    """
    from imatrix_lab.publish.preference.pack import PackRequest, key_path
    from imatrix_lab.publish.preference.pack import make as make_pack
    from imatrix_lab.publish.preference.prompts import read
    from imatrix_lab.types import Sampling

    if math.isnan(temperature):
        raise click.BadParameter("not a number", param_hint="--temperature")
    compute, sampling = options.compute_options(rest), Sampling(temperature, seed)
    request = PackRequest(
        read(prompts), (a, b, *c), out, compute, sampling=sampling if temperature else None, **rest
    )
    key = make_pack(request, options.session())
    n_alike = len(key.identical)
    alike = f"; {n_alike:,} pairs of answers are the same text and are not shown" if n_alike else ""
    stderr.print(f"{len(key.prompts):,} prompts{alike}", markup=False, soft_wrap=True)
    stderr.print(f"keep the key: {key_path(out)}", markup=False, soft_wrap=True)
    options.echo(out)


KEY = click.option("--key", "key_path", required=True, type=options.PathType(), metavar="FILE",
                   help="The page's key.")  # fmt: skip


@preference.command()
@KEY
@CHAT
def judge(key_path: Path, **chat_options: Any) -> None:
    """Let a model judge the same pairs, both ways round; tally says whether people agree with it.

    \b
    Example:
      imatrix-lab preference judge --key vote.key.json --model judge.gguf
    """
    from imatrix_lab.publish.preference import judges
    from imatrix_lab.publish.preference.pack import read_key

    session, key = options.session(), read_key(key_path)
    judges.locale_of(key)  # what is wrong is told before a model is loaded
    with chat_with(chat_options, session) as chat:
        options.echo(judges.ask(key, key_path, chat, session.progress))


@preference.command()
@click.argument("votes", nargs=-1, required=True, type=options.PathType(), metavar="VOTES.json …")
@KEY
@click.option("--records", multiple=True, type=options.PathType(), metavar="PATH",
              help="Records of score or task, to stand beside; may be repeated.")  # fmt: skip
@click.option("--margin", type=click.FloatRange(0, 100, min_open=True), metavar="POINTS",
              help="Smallest difference in wins that matters, in points.")  # fmt: skip
@options.JSON
def tally(
    votes: tuple[Path, ...], key_path: Path, records: tuple[Path, ...], margin: float | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Say what the votes of a page show, and how each person voted.

    Beside it stands what judges say, whose files lie beside the key, and records.

    \b
    Example:
      imatrix-lab preference tally votes/*.json --key vote.key.json --margin 10
    """
    from imatrix_lab.publish.preference import judges, measures
    from imatrix_lab.publish.preference.pack import read_key
    from imatrix_lab.publish.preference.votes import judge_sentence, read_ballots, sentence
    from imatrix_lab.publish.preference.votes import tally as count

    key = read_key(key_path)
    ballots = read_ballots(votes, key)
    share = math.nan if margin is None else margin / 100
    verdicts, measured = judges.read(key, key_path), measures.compare(records, key)
    result = count(ballots, key, share, verdicts, measured)
    if as_json:
        return options.emit(_plain(result))
    for pair in result.pairs:
        click.echo(sentence(pair, result))
    for judge in result.judges:
        click.echo(judge_sentence(judge, result))
    _details(result)
    _measures(result)
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


def _measures(result: Tally) -> None:
    if not result.measures:
        return
    table = new_table("beside it", "on", "A", "B", "of A", "of B", "A - B", "95 % CI", n_text=4)
    for m in result.measures:
        numbers = [(m.value_a,), (m.value_b,), (m.difference,), (m.low, m.high)]
        cells = (" … ".join(with_error(x, m.std_error) for x in pair) for pair in numbers)
        names = (escape(name) for name in (f"{m.words}, {m.unit}", m.text, m.a, m.b))
        table.add_row(*names, *cells)
    stdout.print(table)


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.0f} %"
