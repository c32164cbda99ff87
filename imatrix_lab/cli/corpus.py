"""The commands for text: corpus list, build, add, show."""

import dataclasses
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from imatrix_lab.cli import options
from imatrix_lab.cli.terminal import Terminal, new_table, stderr, stdout
from imatrix_lab.core.outputs import Rules
from imatrix_lab.corpus.languages import LICENCE_CLASSES, Language
from imatrix_lab.errors import UsageError
from imatrix_lab.types import TextOptions

FILE = options.PathType(exists=True, dir_okay=False)
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
        listed = [languages.get(options.language(language, terminal))]
    else:
        listed = list(languages.load_all().values())
    for path, why in (fault for n in listed for fault in n.faults.items()):
        terminal.say(f"note: left out: {why}, in {path}")
    if as_json:
        return options.emit([dataclasses.asdict(n) for n in listed])
    if language:
        rows = _source_rows(listed[0])
        _print_table(("code", "language", "source", "licence", "tokens", "needs"), rows, 6)
    else:
        columns = ("code", "language", "tokens offline", "sources, in order")
        _print_table(columns, map(_language_row, listed), 4)
    note = "tokens: about, of the demo model; offline: with the package registries alone"
    stderr.print(f"{note}; mixtures by name: {' '.join(mixture.files())}", style="dim")


def _language_row(language: Language) -> tuple[str, ...]:
    n_offline = sum(s.tokens for s in language.sources if not s.heldout)
    names = ", ".join(s.name for s in language.sources)
    return language.code, language.name, f"{n_offline:,}", names


def _source_rows(language: Language) -> Iterable[tuple[str, ...]]:
    for s in language.sources:
        tokens = f"{s.tokens:,}" if s.tokens else "any"
        heldout = " (held out)" if s.heldout else ""
        yield language.code, language.name, s.name, s.licence, tokens + heldout, NEEDS[s.kind]


def _print_table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]], n_text: int) -> None:
    table = new_table(*columns, n_text=n_text)
    for row in rows:
        table.add_row(*row)
    stdout.print(table)


BUILD = options.several(
    [
        options.MODEL,
        options.TOKENS,
        click.option("--source", "sources", default="", metavar="A,B",
                     help="Calibrate on these of the language's sources. [default: all, in order]"),
        click.option("--heldout", default="", metavar="SOURCE", help="The source to hold out."),
        click.option("--licence", default="", type=click.Choice(["", *LICENCE_CLASSES]),
                     help="Allow licences up to this class. [default: any]"),
        click.option("--samples", "n_samples", type=click.IntRange(1), default=1,
                     show_default=True, help="How many disjoint calibration samples."),
        click.option("--chat", type=click.FloatRange(0, 0.9), default=0.0, metavar="SHARE",
                     help="Share of the tokens that is chats, in the model's own template."),
        click.option("--exclude", multiple=True, metavar="FILE", type=FILE,
                     help="An evaluation set; text that overlaps with it is dropped."),
        click.option("--seed", type=int, default=0, show_default=True),
        click.option("--workers", type=click.IntRange(1), default=1, show_default=True,
                     help="Processes for cleaning."),
        click.option("--renew", is_flag=True, help="Forget which sources were chosen."),
        options.JSON,
    ]
)  # fmt: skip


@corpus.command("build")
@click.argument("text", metavar="LANGUAGE")
@BUILD
def corpus_build(
    text: str, model: str, n_tokens: int, sources: str, as_json: bool, **rest: Any
) -> None:
    """Build calibration.txt, heldout.jsonl and manifest.json; print their folder.

    LANGUAGE is a language, code, random-tokens, shuffled:nb, or a mixture: multi10,
    nb=0.75,en=0.25.

    \b
    Example:
      imatrix-lab corpus build nb --tokens 65536 --model demo
      imatrix-lab corpus build nb=0.75,en=0.15,code=0.10
    """

    from imatrix_lab.corpus import mixture, selection
    from imatrix_lab.pipeline import tune

    session = options.session()
    names = tuple(sources.replace(",", " ").split())
    text_options = TextOptions(sources=names, **rest)
    text = options.language(text, session.progress)
    for part in mixture.parse(text).parts:  # not a folder
        if part.language:
            selection.check(part.language, text_options)
    request = options.request(text, (), model=model, n_tokens=n_tokens, corpus=text_options)
    tools, resolved = tune.prepare(request, session)
    corpora = []
    for k in range(1, text_options.n_samples + 1):
        sample = dataclasses.replace(text_options, sample=k, renew=text_options.renew and k == 1)
        request = dataclasses.replace(request, corpus=sample)
        corpora.append(tune.corpus_of(request, tools, resolved, session))
    if as_json:
        return options.emit(corpora if text_options.n_samples > 1 else corpora[0])
    for built in corpora:
        name = f"sample {built.sample}: " if built.sample else ""
        heldout = f"{built.n_heldout_tokens:,} in {built.n_heldout} held out; {built.licence}"
        counts = f"{built.n_tokens:,} tokens in {built.n_documents} documents"
        session.progress.say(f"{name}{counts} for calibration, {heldout}")
        options.echo(built.calibration.parent)
    if names or text_options.heldout:
        session.progress.say(
            f"score on the text held out here: --text {corpora[0].language}={corpora[0].heldout}"
        )


@corpus.command("add")
@click.argument("files", nargs=-1, required=True, type=FILE)
@click.option("--lang", required=True, metavar="LANGUAGE", help="What language it is in.")
@click.option("--name", required=True, help="What to call the source.")
@click.option("--licence", required=True, help="SPDX name of its licence, e.g. CC0-1.0.")
@options.FIELD
@options.FORCE
def corpus_add(
    files: tuple[Path, ...], lang: str, name: str, licence: str, field: str, force: bool
) -> None:
    """Make text of your own (txt, jsonl, json, csv, parquet; packed too) a source of a language.

    \b
    Example:
      imatrix-lab corpus add my-text/*.txt --lang nn --name mine --licence CC0-1.0
    """

    from imatrix_lab.corpus.sources.files import add, registration

    terminal = Terminal()
    code = options.language(lang, terminal)
    source = add(files, code, name, licence, field, Rules(files, force, terminal))
    terminal.say(
        f"{name} is now a source of {code} ({source.licence}, counted as {source.licence_class});"
        f" to use it: imatrix-lab corpus build {code} --source {name}"
    )
    terminal.say(f"to undo it: rm {shlex.quote(str(registration(code, name)))}")


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
    artifact = show.find(text, session.store)
    if artifact is None:
        fix = f"imatrix-lab corpus build {shlex.quote(text)}"
        raise UsageError(f"no corpus of {text!r} has been built", fix=fix)
    if as_json:
        return options.emit(artifact.manifest)
    session.progress.say(str(artifact.path))
    facts = artifact.facts
    table = new_table("", "", n_text=2, header=False)
    for key, value in show.summary(facts).items():
        table.add_row(key, escape(value))
    stdout.print(table)
    tables = {show.SOURCE_COLUMNS: show.sources(facts), show.DROPPED_COLUMNS: show.dropped(facts)}
    for columns, rows in tables.items():
        if rows:
            stdout.print()
            _print_table(columns, rows, 3)
    for title, lines in show.samples(artifact, session.store, n_dropped).items():
        stdout.print(f"\n[bold]{escape(title)}[/bold]")
        for line in lines:
            stdout.print(escape(line))
