"""The commands for text: corpus list, build, mix, add, show."""

import dataclasses
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from imatrix_lab.cli import options
from imatrix_lab.cli.terminal import Terminal, stderr, stdout
from imatrix_lab.core.progress import Progress
from imatrix_lab.corpus.languages import LICENCE_CLASSES
from imatrix_lab.errors import UsageError
from imatrix_lab.types import CorpusFacts, TextOptions

NEEDS = {
    "hub": "the Hugging Face Hub",
    "pypi": "PyPI",
    "debian": "apt and Debian's packages",
    "files": "your files",
    "written": "nothing",
}


@click.group()
def corpus() -> None:
    """Calibration and held-out text by language."""


@corpus.command("list")
@click.argument("language", required=False)
@options.JSON
def corpus_list(language: str | None, as_json: bool) -> None:
    """List languages, their sources and licences, the tokens to expect, and what works offline.

    \b
    Example:
      imatrix-lab corpus list nb
    """

    from imatrix_lab.corpus import languages, mixture

    terminal = Terminal()
    if language:
        found = [languages.get(options.language(language, terminal))]
    else:
        found = list(languages.load_all().values())
    for path, why in (fault for n in found for fault in n.faults.items()):
        terminal.say(f"note: left out: {why}, in {path}")
    if as_json:
        return options.emit([dataclasses.asdict(n) for n in found])
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("code")
    table.add_column("language", overflow="fold")
    if language:
        for name in ("source", "licence", "tokens", "needs"):
            table.add_column(name, overflow="fold")
        for n in found:
            for s in n.sources:
                tokens = f"{s.tokens:,}" if s.tokens else "any"
                held = " (held out)" if s.heldout else ""
                needs = NEEDS[s.kind]
                table.add_row(n.code, n.name, s.name, s.licence, tokens + held, needs)
    else:
        for name in ("tokens offline", "sources, in order"):
            table.add_column(name, overflow="fold")
        for n in found:
            offline = sum(s.tokens for s in n.sources if not s.heldout)
            table.add_row(n.code, n.name, f"{offline:,}", ", ".join(s.name for s in n.sources))
    stdout.print(table)
    stderr.print(
        "tokens: about, of the demo model; offline: with the package registries alone;"
        f" mixtures by name: {' '.join(mixture.names())}",
        style="dim",
    )


BUILD = options.several(
    [
        options.MODEL,
        options.TOKENS,
        click.option("--source", "sources", metavar="A,B",
                     help="Calibrate on these of the language's sources. [default: in order]"),
        click.option("--heldout", default="", metavar="SOURCE", help="The source to hold out."),
        click.option("--licence", default="", type=click.Choice(["", *LICENCE_CLASSES]),
                     help="The most binding kind of licence admitted."),
        click.option("--samples", "n_samples", type=click.IntRange(1), default=1,
                     show_default=True, help="How many disjoint calibration samples."),
        click.option("--chat", type=click.FloatRange(0, 0.9), default=0.0, metavar="SHARE",
                     help="Share of the tokens that is chats, in the model's own template."),
        click.option("--exclude", multiple=True, metavar="FILE",
                     type=click.Path(path_type=Path, exists=True, dir_okay=False),
                     help="An evaluation set; text that overlaps with it is dropped."),
        click.option("--seed", type=int, default=0, show_default=True),
        click.option("--workers", type=click.IntRange(1), default=1, show_default=True,
                     help="Processes for cleaning."),
        click.option("--renew", is_flag=True, help="Choose the sources anew."),
        options.JSON,
    ]
)  # fmt: skip


@corpus.command("build")
@click.argument("text", metavar="LANGUAGE")
@BUILD
def corpus_build(text: str, **rest: Any) -> None:
    """Build calibration.txt, heldout.jsonl and manifest.json; print their folder.

    LANGUAGE is a language, code, random-tokens, shuffled:nb, or a mixture: multi10,
    nb=0.75,en=0.25.

    \b
    Example:
      imatrix-lab corpus build nb --tokens 65536 --model demo
    """
    _build(text, **rest)


@corpus.command("mix")
@click.argument("shares", nargs=-1, required=True, metavar="NAME=SHARE...")
@BUILD
def corpus_mix(shares: tuple[str, ...], **rest: Any) -> None:
    """Build a corpus of several languages by share of the tokens.

    \b
    Example:
      imatrix-lab corpus mix nb=0.75 en=0.15 code=0.10 --tokens 65536
    """
    _build(",".join(shares), **rest)


def _build(text: str, model: str, n_tokens: int, as_json: bool, **rest: Any) -> None:

    from imatrix_lab.corpus import mixture
    from imatrix_lab.pipeline import tune

    session = options.session()
    named = tuple(filter(None, (rest.pop("sources") or "").replace(",", " ").split()))
    wanted = TextOptions(sources=named, **rest)
    text = options.language(text, session.progress)
    mixture.parse(text)  # not a folder
    request = options.request(text, (), model=model, n_tokens=n_tokens, corpus=wanted)
    tools, found = tune.prepare(request, session)
    built = [
        tune.corpus_of(
            dataclasses.replace(
                request,
                corpus=dataclasses.replace(wanted, sample=k, renew=wanted.renew and k == 1),
            ),
            tools, found, session,
        )
        for k in range(1, wanted.n_samples + 1)
    ]  # fmt: skip
    if as_json:
        return options.emit(built if wanted.n_samples > 1 else built[0])
    for one in built:
        _tell(one, session.progress)
        click.echo(one.calibration.parent)
    if named or wanted.heldout:
        session.progress.say(
            f"score on the text held out here: --text {built[0].language}={built[0].heldout}"
        )


def _tell(built: CorpusFacts, terminal: Progress) -> None:
    sample = f"sample {built.sample}: " if built.sample else ""
    terminal.say(
        f"{sample}{built.n_tokens:,} tokens in {built.n_documents} documents for calibration,"
        f" {built.n_heldout_tokens:,} in {built.n_heldout} held out; {built.licence}"
    )


@corpus.command("add")
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@click.option("--lang", required=True, metavar="LANGUAGE", help="What language it is in.")
@click.option("--name", required=True, help="What to call the source.")
@click.option("--licence", required=True, help="SPDX name of its licence, e.g. CC0-1.0.")
@click.option("--field", default="text", show_default=True, help="Of JSON lines and Parquet.")
def corpus_add(files: tuple[Path, ...], lang: str, name: str, licence: str, field: str) -> None:
    """Make text of your own (txt, jsonl, parquet) a source of a language.

    \b
    Example:
      imatrix-lab corpus add my-text/*.txt --lang nn --name mine --licence CC0-1.0
    """

    from imatrix_lab.corpus import sources

    terminal = Terminal()
    code = options.language(lang, terminal)
    source = sources.add(files, code, name, licence, field)
    terminal.say(
        f"{name} is a source of {code} now ({source.licence}, counted as {source.licence_class});"
        f" to use it: imatrix-lab corpus build {code} --source {name}"
    )


@corpus.command("show")
@click.argument("text", metavar="LANGUAGE|FOLDER")
@click.option("--dropped", "n_dropped", type=click.IntRange(0), default=8, show_default=True,
              help="How many dropped texts to show.")  # fmt: skip
@options.JSON
def corpus_show(text: str, n_dropped: int, as_json: bool) -> None:
    """What is in a corpus that was built: sources, counts, what was dropped and why, samples.

    \b
    Example:
      imatrix-lab corpus show ml
    """

    from imatrix_lab.corpus import show

    session = options.session()
    found = show.find(text, session.store)
    if found is None:
        raise UsageError(
            f"no corpus of {text!r} has been built", fix=f"imatrix-lab corpus build {text}"
        )
    if as_json:
        return options.emit(found.manifest)
    session.progress.say(str(found.path))
    facts = found.facts
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in show.summary(facts).items():
        table.add_row(key, escape(value))
    stdout.print(table)
    _print_sources(facts)
    _print_dropped(facts)
    for title, lines in show.samples(found, session.store, n_dropped).items():
        stdout.print(f"\n[bold]{escape(title)}[/bold]")
        for line in lines:
            stdout.print(escape(line))


def _print_sources(facts: dict[str, Any]) -> None:

    from imatrix_lab.corpus import show

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("source", "version", "licence"):
        table.add_column(name, overflow="fold")
    for name in ("calibrated on", "held out", "language share"):
        table.add_column(name, justify="right")
    for s in facts.get("sources", ()):
        table.add_row(
            s["name"], s["version"][:16], s["licence"], f"{s['n_used']} documents",
            f"{s['n_heldout']}", show.share(s["cleaning"]),
        )  # fmt: skip
    if table.row_count:
        stdout.print()
        stdout.print(table)


def _print_dropped(facts: dict[str, Any]) -> None:

    from imatrix_lab.corpus import show

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("source", "step", "reason"):
        table.add_column(name, overflow="fold")
    for name in ("documents", "paragraphs", "changes"):
        table.add_column(name, justify="right")
    for row in show.dropped(facts):
        table.add_row(*row)
    if table.row_count:
        stdout.print()
        stdout.print(table)
