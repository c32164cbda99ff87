"""Puts finished files into the output folder, with a manifest and a model card."""

import dataclasses
import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock

from imatrix_lab import __version__
from imatrix_lab.core import config, outputs
from imatrix_lab.core.files import from_json, place, sealed_json, sha256_file, unsealed, write_whole
from imatrix_lab.core.manifest import MANIFEST
from imatrix_lab.core.names import readable
from imatrix_lab.core.outputs import Rules, check_file
from imatrix_lab.core.paths import expanded
from imatrix_lab.corpus.mixture import is_language
from imatrix_lab.errors import BadModel, UsageError
from imatrix_lab.imatrix import format
from imatrix_lab.llamacpp import size_types
from imatrix_lab.llamacpp.compute import WINDOW
from imatrix_lab.models.gguf import read_header
from imatrix_lab.pipeline.allocate import Chosen
from imatrix_lab.pipeline.card.facts import facts_of, left_out
from imatrix_lab.pipeline.card.text import card
from imatrix_lab.quantize import int4, run
from imatrix_lab.types import CorpusFacts, ImatrixFacts, Model, QuantFacts, Request, TypeChoice

CARD = "README.md"
_CARD_SHA256 = "card_sha256"
_QUANT = "imatrix_lab.version"
"""In the metadata of every quant that was made here."""
DEMO_NOTE = (
    "The demo model was quantized once before it was dequantized and widened: it is a stand-in"
    " for trying the tool, not a base for publishing quants. Gemma is provided under and subject"
    " to the Gemma Terms of Use found at ai.google.dev/gemma/terms; the notice lies beside the"
    " files."
)
_OTHER_FOLDER = "choose another folder: OUT=FOLDER for make, or --out FOLDER"


@dataclass(frozen=True)
class Names:
    """What names files: the label of a model, that of its imatrix, or none; and what is known.

    `chosen`: what was chosen at each size; before, names that depend on it are unknown.
    """

    model_label: str
    language: str
    model: Model | None = None
    imatrix: ImatrixFacts | None = None
    """A user's own: it stays where it is."""
    chosen: Mapping[str, Chosen] = field(default_factory=dict)

    def files(self, request: Request) -> dict[str, str]:
        """Return the names of a request's quants by their types, as far as they are known."""
        types, ways = request.types, {"awq": request.awq, "feedback": request.feedback}
        called = run.calibration(self.language, **ways)
        bases = {t: self.chosen[t].mix.base if t in self.chosen else "" for t in types}
        return {
            t: run.file_name(self.model_label, called, t, base)
            for t, base in bases.items()
            if base or not size_types.is_size(t) or size_types.standard(t)
        }


def check_folder(out: Path, rules: Rules) -> None:
    """Check that files can be put into a folder without loss.

    Raises UsageError: it is a file, or has a manifest or card of someone else's; ImatrixLabError:
    the disk does not take them.
    """
    try:
        outputs.check_folder(out)
    except UsageError as error:
        raise UsageError(error.what, where=error.where, fix=_OTHER_FOLDER) from error
    manifest = _manifest(out)
    if manifest is None:
        for name in (MANIFEST, CARD):
            if (out / name).exists():
                raise UsageError(f"{name} would be overwritten", where=out, fix=_OTHER_FOLDER)
    elif manifest.get(_CARD_SHA256):
        changed = "a model card that was changed since"
        check_file(out / CARD, rules, lambda _: "" if card_is_ours(out) else changed)


def check_files(request: Request, names: Names, rules: Rules) -> None:
    """Check that the files of a request replace nothing but those of the same one.

    Raises UsageError: a file stands there that is something else, or made by another request.
    """
    out, label, language, model = request.out, names.model_label, names.language, names.model
    same = _settings(request) | ({"model_sha256": model.sha256} if model else {})
    if names.imatrix:
        same["imatrix_sha256"] = names.imatrix.sha256
    if model:
        rules = dataclasses.replace(rules, inputs=(*rules.inputs, *model.shards))
    entries = entries_of(out) or {}
    if language and not names.imatrix:
        name = imatrix_name(label, language, request.moments)
        check_file(out / name, rules, _other_than(same, entries.get(name, {})))
    for quant_type, name in names.files(request).items():
        own = {**same, **_choice(request, quant_type)}
        check_file(out / name, rules, _other_than(own, entries.get(name, {})))
        if size_types.is_size(quant_type) and name not in entries:
            check_file(run.types_path(out / name), rules)
    for path in model.notice if model else ():
        check_file(out / path.name, rules, outputs.other_bytes(path))


def _settings(request: Request) -> dict[str, Any]:
    """Return what a request says that changes its files, for the manifest."""
    return {
        "text": portable(request.text),
        "n_tokens": request.n_tokens,
        "n_ctx": request.compute.n_ctx or WINDOW,
        "parse_special": request.parse_special,
        "process_output": request.process_output,
        **({"awq": True} if request.awq else {}),
        **({"feedback": True} if request.feedback else {}),
        **({"quantized_by": request.quantized_by} if request.quantized_by else {}),
    }


def _choice(request: Request, quant_type: str) -> dict[str, Any]:
    """Return what a request says of a file of a size, for the manifest."""
    return {"choice": config.plain(request.choice)} if size_types.is_size(quant_type) else {}


def _other_than(same: Mapping[str, Any], entry: Mapping[str, Any]) -> outputs.Other:
    """Return what tells files of a manifest's `entry` that have the `same` facts from others."""
    known = {**entry, **entry.get("request", {})}

    def other(path: Path) -> str:
        try:
            header = read_header(path)
        except BadModel:
            return outputs.any_file(path)
        if not entry or not any(key in header.metadata for key in (_QUANT, format.MODEL)):
            return outputs.any_file(path)
        for name, value in same.items():
            if (old := known.get(name, value)) != value:
                return f"a file made by another request: its {name} is {old}, not {value}"
        return ""

    return other


def entries_of(out: Path) -> dict[str, Any] | None:
    """Return the files of a manifest of ours, or None."""
    manifest = _manifest(out)
    return dict(manifest["files"]) if manifest else None


def card_is_ours(out: Path) -> bool:
    """Whether nobody has changed the card, or there is none."""
    digest = (_manifest(out) or {}).get(_CARD_SHA256)
    return not (out / CARD).exists() or sha256_file(out / CARD) == digest


def _manifest(out: Path) -> dict[str, Any] | None:
    """Return a manifest of ours, or None; raises UsageError for one that was changed."""
    try:
        manifest = dict(from_json((out / MANIFEST).read_text(encoding="utf-8")))
        if not all("kind" in e for e in manifest["files"].values()):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    try:
        return unsealed(manifest)
    except ValueError as error:
        both = f"it and {CARD}"
        fix = f"put it back as it was; or remove {both}, and let --force make the files again"
        raise UsageError(str(error), where=out / MANIFEST, fix=fix) from error


@dataclass(frozen=True)
class Made:
    """What quants were made of, and verified with; no `corpus` for a user's own imatrix."""

    model: Model
    corpus: CorpusFacts | None
    imatrix: ImatrixFacts | None
    heldout: run.HeldOut


def deliver(
    request: Request, made: Made, quants: tuple[QuantFacts, ...], chosen: Mapping[str, Chosen]
) -> tuple[Path, ...]:
    """Put the files, manifest and card into the output folder; return the quants' paths.

    The manifest names the files before they come: a run that is stopped in between goes on with
    them, as with its own.
    """
    out, imatrix = request.out, made.imatrix
    out.mkdir(parents=True, exist_ok=True)
    common = _provenance(request, made)
    entries, sources = dict[str, Any](), dict[str, Path]()
    if imatrix and made.corpus:  # a user's own file stays where it is
        name = imatrix_name(made.model.label, imatrix.language, request.moments)
        sources[name] = imatrix.path
        entries[name] = {"kind": "imatrix", "sha256": imatrix.sha256, **common}
    for q in quants:
        sources[q.name] = q.path
        facts = {k: v for k, v in vars(q).items() if k not in {"path", "name", "seconds"}}
        entries[q.name] = {"kind": "quant", **facts, **facts_of([q.path]), **common}
        if own := chosen.get(q.type):
            sources[run.types_path(out / q.name).name] = run.types_path(q.path)
            settings = {**common["request"], **_choice(request, q.type)}
            entries[q.name] |= {"request": settings, "chosen": own.facts()}
        if note := int4.note(q, made.model.facts.n_parameters):
            entries[q.name]["note"] = " ".join(filter(None, (note, common["note"])))
    for path in made.model.notice:
        sources[path.name] = path
        entries[path.name] = {"kind": "notice", "sha256": sha256_file(path)}
    with filelock.FileLock(out / ".lock"):
        write_whole(out / MANIFEST, sealed_json({"files": _joined(out, entries)}))
        for name, source in sources.items():
            place(source, out / name)
        _write(out, entries)
    return tuple(out / q.name for q in quants)


def imatrix_name(label: str, language: str, has_moments: bool = False) -> str:
    """Return the name of an importance matrix in the output folder, by its model's label."""
    return f"{label}-{language}.imatrix{'.moments' * has_moments}.gguf"


def named(imatrix: ImatrixFacts | None) -> dict[str, str]:
    """Return ``language`` of an importance matrix if it is one, or ``label``; {} of none."""
    if not imatrix:
        return {}
    is_known = not imatrix.unnamed and is_language(imatrix.language)
    return {"language" if is_known else "label": imatrix.language}


def _provenance(request: Request, made: Made) -> dict[str, Any]:
    """Return what the manifest says of every file of a run; no path of this machine."""
    model, corpus, imatrix, heldout = made.model, made.corpus, made.imatrix, made.heldout
    provenance = f"imatrix_lab {__version__}"
    is_same = imatrix.is_of_text(heldout.sha256) if imatrix and not corpus else False
    if corpus and imatrix:
        provenance = (
            f"{corpus.language_name}: imatrix over {imatrix.n_tokens:,} tokens"
            f" ({imatrix.n_chunks} windows of {imatrix.n_ctx}) of {corpus.source}"
            f" ({corpus.licence}); {provenance}"
        )
    elif imatrix and imatrix.datasets:
        licence = f" (licence: {imatrix.licence})" if imatrix.licence else ""
        provenance = f"imatrix of {', '.join(imatrix.datasets)}{licence}; {provenance}"
    return {
        "language": named(imatrix).get("language", ""),
        "imatrix": imatrix.unnamed or imatrix.language if imatrix else "",
        "model": model.origin,
        "model_name": model.facts.name,
        "model_sha256": model.sha256,
        "base_model": model.base_model,
        "license": model.facts.license,
        "left_out": left_out(model.origin, model.facts.n_mtp_layers),
        "imatrix_sha256": imatrix.sha256 if imatrix else "",
        "corpus_sha256": corpus.sha256 if corpus else imatrix.corpus_sha256 if imatrix else "",
        "heldout": heldout.name,
        "heldout_sha256": heldout.sha256,
        "heldout_is_calibration": is_same,
        "request": _settings(request),
        "command": command(request, model, corpus is not None, imatrix is not None),
        "provenance": provenance,
        "forced": imatrix.forced if imatrix else "",
        "note": DEMO_NOTE if model.origin == "demo" else "",
    }


def command(request: Request, model: Model, is_tuned: bool, has_imatrix: bool) -> str:
    """Return the command that repeats a request, without paths of this machine."""
    compute = request.compute
    sizes = [t.removeprefix(size_types.PREFIX) for t in request.types if size_types.is_size(t)]
    types = " ".join(t for t in request.types if not size_types.is_size(t))
    words = ["make", "quant", f"LANG={request.text}"]
    words += [f"TYPES={types}"] if types else []
    words += [f"SIZE={' '.join(sizes)}"] if sizes else []
    words += ["AWQ=1"] if request.awq else []
    words += ["FEEDBACK=1"] if request.feedback else []
    words += [f"MODEL={model.origin}", f"TOKENS={request.n_tokens}", f"BACKEND={compute.backend}"]
    if not is_tuned:
        words = ["imatrix-lab", "quantize", "--model", model.origin]
        words += ["--imatrix", "FILE" if has_imatrix else "none"]
        words += ["--heldout", portable(request.text)] if request.text else []
        words += ["--type", types] if types else []
        words += [word for size in sizes for word in ("--size", size)]
        words += ["--backend", compute.backend]
    settings = {"--ctx": compute.n_ctx if compute.n_ctx != WINDOW else None}
    settings |= {"--batch": compute.n_batch, "--gpu-layers": compute.gpu_layers}
    flags = [f"{name} {value}" for name, value in settings.items() if value is not None]
    placed = compute.override_tensor
    flags += [f"--override-tensor {shlex.quote(placed)}"] if placed else []
    flags += ["--parse-special"] if request.parse_special else []
    flags += ["--awq"] if request.awq and not is_tuned else []
    flags += ["--feedback"] if request.feedback and not is_tuned else []
    flags += [f"--quantized-by {shlex.quote(name)}"] if (name := request.quantized_by) else []
    flags += ["--allow-requantize"] if request.allow_requantize else []
    flags += ["--force"] if request.force else []
    flags += _choice_flags(request.choice)
    words += [f"FLAGS={' '.join(flags)}"] if is_tuned and flags else shlex.split(" ".join(flags))
    return shlex.join(words)


def _choice_flags(choice: TypeChoice) -> list[str]:
    flags = []
    if choice.languages:
        flags.append("--for " + ",".join(f"{x}={weight:g}" for x, weight in choice.languages))
    flags += [f"--at-least {role}={type_name}" for role, type_name in choice.at_least]
    flags += [f"--types {','.join(choice.types)}"] if choice.types else []
    limits = choice.no_worse_than
    return flags + [f"--no-worse-than {t}:{','.join(named)}" for t, named in limits]


def portable(text: str) -> str:
    """Return a text's name without the folders of this machine."""
    path = expanded(text)
    return readable(path.name) if path.exists() else text


def add(out: Path, name: str, facts: Mapping[str, Any]) -> None:
    """Add facts to a file's entry in the manifest and to the card."""
    with filelock.FileLock(out / ".lock"):
        entry = (entries_of(out) or {})[name]
        _write(out, {name: entry | dict(facts)})


def _write(out: Path, entries: Mapping[str, Any]) -> None:
    """Write ``manifest.json`` and the card: old and new files, without those that are gone."""
    files = {n: entry for n, entry in _joined(out, entries).items() if (out / n).exists()}
    text = card(files)
    digest = hashlib.sha256(text.encode()).hexdigest()
    # a run that is killed in between must not take the new card for one that a person changed
    write_whole(out / MANIFEST, sealed_json({"files": files}))
    write_whole(out / CARD, text)
    write_whole(out / MANIFEST, sealed_json({"files": files, _CARD_SHA256: digest}))


def _joined(out: Path, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest's files with new `entries`; a file as before keeps what was added."""
    files = entries_of(out) or {}
    for name, entry in entries.items():
        old = files.get(name, {})
        files[name] = {**old, **entry} if old.get("sha256") == entry["sha256"] else entry
    return files
