"""Putting finished files where the user asked for them, with a manifest and a model card."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

from imatrix_lab import __version__
from imatrix_lab.errors import UsageError
from imatrix_lab.languages import load_all
from imatrix_lab.records import CorpusFacts, ImatrixFacts, Model, QuantFacts, Request
from imatrix_lab.store import MANIFEST, canonical_json, disk_error, need_room, write_whole

CARD = "README.md"
DEMO_NOTE = (
    "The demo model was quantized once before it was dequantized and widened: it is a stand-in"
    " for trying the tool, not a base for publishing quants. Gemma is provided under and subject"
    " to the Gemma Terms of Use found at ai.google.dev/gemma/terms; the notice lies beside the"
    " files."
)


def check_folder(out: Path) -> None:
    """Refuse an output folder with a manifest or card of someone else's, which would be lost.

    Raises
    ------
    UsageError : before any work is done.
    """
    foreign = None
    if (out / MANIFEST).exists():
        foreign = None if _entries(out) is not None else MANIFEST
    elif (out / CARD).exists():
        foreign = CARD
    if foreign:
        raise UsageError(
            f"there is a {foreign} here that would be overwritten",
            where=out,
            fix="choose another folder: make quant OUT=..., or --out",
        )


def _entries(out: Path) -> dict[str, Any] | None:
    """Return the files of a manifest of ours, or None."""
    try:
        files = json.loads((out / MANIFEST).read_text(encoding="utf-8"))["files"]
        return dict(files) if all("kind" in e for e in files.values()) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def place(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`: a hard link, or a whole copy on another disk.

    A linked file is the store's own, so it is made read-only.

    Raises
    ------
    DiskFull : a copy does not fit.
    """
    if target.exists() and (_same(source, target)):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            source.chmod(0o444)
            os.link(source, temporary)
        except OSError:
            need_room(target, source.stat().st_size, f"the copy {target.name}")
            shutil.copy2(source, temporary)
        temporary.replace(target)
    except OSError as error:
        raise disk_error(error, target) from error
    finally:
        temporary.unlink(missing_ok=True)


def _same(source: Path, target: Path) -> bool:
    if target.samefile(source):
        return True
    ours, theirs = source.stat(), target.stat()
    return ours.st_size == theirs.st_size and ours.st_mtime_ns == theirs.st_mtime_ns


def deliver(
    request: Request,
    model: Model,
    corpus: CorpusFacts | None,
    imatrix: ImatrixFacts | None,
    quants: tuple[QuantFacts, ...],
) -> tuple[Path, ...]:
    """Put the files into the output folder, then the manifest, then the card.

    Returns
    -------
    The paths of the quantized files, in order.
    """
    import filelock

    out = request.out
    out.mkdir(parents=True, exist_ok=True)
    common = _provenance(request, model, corpus, imatrix)
    with filelock.FileLock(out / ".lock"):
        entries: dict[str, Any] = {}
        if imatrix and corpus:  # else it is the user's own file, and stays where it is
            name = f"{model.label}-{imatrix.language}.imatrix.gguf"
            place(imatrix.path, out / name)
            entries[name] = {"kind": "imatrix", "sha256": imatrix.sha256, **common}
        for q in quants:
            place(q.path, out / q.path.name)
            facts = {k: v for k, v in vars(q).items() if k not in {"path", "seconds"}}
            entries[q.path.name] = {"kind": "quant", **facts, **common}
        for path in model.notice:
            place(path, out / path.name)
        files = update_manifest(out, entries)
        write_whole(out / CARD, card(files))
    return tuple(out / q.path.name for q in quants)


def _provenance(
    request: Request, model: Model, corpus: CorpusFacts | None, imatrix: ImatrixFacts | None
) -> dict[str, Any]:
    """Return what the manifest says of every file of a run; no path of this machine."""
    made_of = f"imatrix_lab {__version__}"
    if corpus and imatrix:
        made_of = (
            f"{corpus.language_name}: imatrix over {imatrix.n_tokens:,} tokens"
            f" ({imatrix.n_chunks} windows of {imatrix.n_ctx}) of {corpus.source}"
            f" ({corpus.licence}); {made_of}"
        )
    return {
        "language": imatrix.language if imatrix else "",
        "model": model.origin,
        "model_name": model.facts.name,
        "model_sha256": model.sha256,
        "base_model": model.base_model,
        "license": model.facts.license,
        "imatrix_sha256": imatrix.sha256 if imatrix else "",
        "corpus_sha256": corpus.sha256 if corpus else "",
        "command": command(request, model, tuned=corpus is not None),
        "provenance": made_of,
        "forced": imatrix.forced if imatrix else "",
        "note": DEMO_NOTE if model.origin == "demo" else "",
    }


def command(request: Request, model: Model, tuned: bool) -> str:
    """Return the command that repeats a request, without paths of this machine."""
    words = ["make", "quant", f"LANG={request.text}", f"TYPES={' '.join(request.types)}"]
    words += [f"MODEL={model.origin}", f"TOKENS={request.n_tokens}", f"BACKEND={request.backend}"]
    if not tuned:
        words = ["imatrix-lab", "quant", "--model", model.origin, "--imatrix", "FILE"]
        words += ["--type", " ".join(request.types), "--backend", request.backend]
    settings = {"--ctx": request.n_ctx if request.n_ctx != 512 else None}
    settings |= {"--batch": request.n_batch, "--gpu-layers": request.gpu_layers}
    flags = [f"{name} {value}" for name, value in settings.items() if value is not None]
    flags += ["--parse-special"] if request.parse_special else []
    flags += ["--allow-requantize"] if request.allow_requantize else []
    flags += ["--force"] if request.force else []
    if tuned and flags:
        flags = [f"FLAGS={' '.join(flags)}"]
    return shlex.join(words + flags)


def update_manifest(folder: Path, entries: dict[str, Any]) -> dict[str, Any]:
    """Add or replace files in ``manifest.json``; return all of its entries that still exist."""
    files = (_entries(folder) or {}) | entries
    files = {name: e for name, e in files.items() if (folder / name).exists()}
    write_whole(folder / MANIFEST, canonical_json({"files": files}))
    return files


def card(files: dict[str, Any]) -> str:
    """Return a model card for the Hub: front matter, what the files are, how they were made."""
    quants = {n: e for n, e in sorted(files.items()) if e["kind"] == "quant"}
    bases = sorted({e["base_model"] for e in quants.values() if e["base_model"]})
    # the Hub knows languages by code; an imatrix over the user's own text may have none
    natural = {code for code, language in load_all().items() if language.script != "Zyyy"}
    languages = sorted({e["language"] for e in quants.values()} & natural)
    licences = sorted({e["license"] for e in quants.values() if e["license"]})
    front = ["---"]
    front += ["base_model:", *(f"- {b}" for b in bases)] if bases else []
    front += ["language:", *(f"- {c}" for c in languages)] if languages else []
    front += [f"license: {licences[0]}"] if len(licences) == 1 else []
    front += ["library_name: gguf", "tags:", "- imatrix", "- llama.cpp"]
    front += ["quantized_by: ''", "---"]
    names = ", ".join(sorted({e["model_name"] for e in quants.values()}))
    lines = [*front, "", f"# GGUF files of {names}", ""]
    lines += [
        "| file | language of the imatrix | type | size | bits per weight | perplexity"
        " (this file / original) | fallback tensors |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for name, e in quants.items():
        lines.append(
            f"| {name} | {e['language'] or 'none'} | {e['type']}"
            f" | {e['size_bytes'] / 2**20:.2f} MiB"
            f" | {e['bits_per_weight']:.2f}"
            f" | {e['perplexity']:.4f} / {e['perplexity_reference']:.4f}"
            f" | {len(e['fallback'])} |"
        )
    lines += ["", "## How these files were made", ""]
    for command in sorted({e["command"] for e in quants.values()}):
        lines.append(f"    {command}")
    lines.append("")
    for text in sorted({e["provenance"] for e in quants.values()}):
        lines.append(f"- {text}")
    lines += [
        "",
        "Perplexity is over the first held-out windows of the same source as the calibration text,"
        " by llama-perplexity: a check that the file works, not a benchmark.",
        "",
    ]
    notes = sorted({e["note"] for e in quants.values() if e.get("note")})
    lines += [f"{note}\n" for note in notes]
    for name, e in quants.items():
        if e.get("forced"):
            lines.append(f"{name} was made with an imatrix that failed its check: {e['forced']}.\n")
    return "\n".join(lines)
