"""A card for files that others made: what their headers and records of `score` say."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imatrix_lab.core.files import canonical_json, write_whole
from imatrix_lab.core.outputs import Rules, any_file, check_file, check_folder, replaceable
from imatrix_lab.core.session import Session
from imatrix_lab.errors import UsageError
from imatrix_lab.models import resolve
from imatrix_lab.models.gguf import read_header
from imatrix_lab.pipeline.card import picture, scores, text
from imatrix_lab.pipeline.card.facts import facts_of
from imatrix_lab.pipeline.card.scores import Scores
from imatrix_lab.publish.files import CARD, RESULTS
from imatrix_lab.publish.upload import SHARD, check_repo
from imatrix_lab.types import Model

_HUB = "https://huggingface.co/"


def write(
    specs: Sequence[str],
    records: Sequence[Path],
    repo: str,
    out: Path,
    session: Session,
    force: bool,
) -> list[Path]:
    """Write a card, with results and picture if there are records; return the files.

    Parameters
    ----------
    specs : the models; see `models.resolve`.
    repo : on the Hub, where the files are or will be; "" leaves it open.

    Raises UsageError: `repo` cannot be a repository's name, or two files have one name;
    BadRecords: the records are of other files.
    """
    if repo:
        check_repo(repo)
    check_folder(out)
    for spec in specs:
        resolve.check_spec(spec, session.store)
    rules = Rules(force=force, progress=session.progress)
    for name in (CARD, RESULTS, picture.NAME):
        check_file(out / name, rules, replaceable)
    models = [resolve.resolve(spec, session) for spec in specs]
    by_name: dict[str, Model] = {}
    for model in models:
        if by_name.setdefault(_name(model), model).sha256 != model.sha256:
            what = "another of these files has this name, and a card tells them by their names"
            raise UsageError(what, where=model.path, fix="rename it, or write a card for each")
    entries = {name: _entry(model) for name, model in by_name.items()}
    shards = {_name(m): [path.name for path in m.shards] for m in models if len(m.shards) > 1}
    scored = Scores()
    if records:
        names = {model.sha256: _name(model) for model in models}
        scored = scores.of_records(records, names, "", session.progress)
    written = {CARD: text.card(entries, text.Release(repo, scored, shards))}
    if scored.files:
        written[RESULTS] = canonical_json(scored.as_json())
        written[picture.NAME] = picture.svg(scored)
    for name, content in written.items():
        check_file(out / name, rules, functools.partial(_other, content.encode()))
    out.mkdir(parents=True, exist_ok=True)
    for name, content in written.items():
        write_whole(out / name, content)
    return [out / name for name in written]


def _other(content: bytes, path: Path) -> str:
    return "" if path.read_bytes() == content else any_file(path)


def _name(model: Model) -> str:
    """Return a model's file name; of a split one that of the whole."""
    return SHARD.sub("", model.path.name)


def _entry(model: Model) -> dict[str, Any]:
    """Return what is known of a file, as a manifest has it."""
    facts = model.facts
    header = read_header(model.path)
    parent = header.text("general.base_model.0.repo_url")
    base = header.text("general.source.repo_url", parent)  # what it was made of, if that is said
    return {
        "kind": "quant",
        "type": facts.file_type,
        "language": "",
        "imatrix": facts.calibration,
        "imatrix_sha256": facts.imatrix_sha256,
        "size_bytes": facts.size_bytes,
        "bits_per_weight": facts.bits_per_weight,
        "sha256": model.sha256,
        "model_name": facts.name,
        "base_model": base.removeprefix(_HUB) if base.startswith(_HUB) else "",
        "license": facts.license,
        "command": "",
        **facts_of(model.shards),
    }
