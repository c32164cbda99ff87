"""Which files of a repository a user means. Names only rank: what is named exactly is taken."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from imatrix_lab.core.format import size
from imatrix_lab.core.hub_http import Files, Listing, total_bytes
from imatrix_lab.errors import FetchFailed, UsageError
from imatrix_lab.models.hub_spec import HubRef

_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.gguf\Z", re.IGNORECASE)
_BESIDE = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
"""In the names of files beside a model, for llama.cpp too."""
_FULL_PRECISION = ("bf16", "f16", "fp16", "f32", "fp32")
_USUAL = ("Q4_K_M", "Q8_0")
"""What llama.cpp takes if no type is named."""
_IMATRIX_NAMES = (
    ("imatrix*.gguf", "imatrix*.gguf_file", "imatrix*.dat", "*.imatrix", "*.imatrix.*"),
    ("*imatrix*.gguf", "*imatrix*.gguf_file", "*imatrix*.dat"),
)
"""Names of an imatrix; the second also those of models that were made with one."""


@dataclass(frozen=True)
class Choice:
    """The files of one model, all its shards in order, and why if the user left it open."""

    names: tuple[str, ...]
    why: str = ""


def is_exact(ref: HubRef, names: Iterable[str]) -> bool:
    """Return whether a request names one of these files with its whole path."""
    return ref.pattern in set(names)


def of_model(ref: HubRef, listing: Listing, has_weights: bool) -> Choice:
    """Return the GGUF model that is meant."""
    files, where = listing.files, f"{ref.repo} at commit {listing.commit}"
    gguf = _models(files)
    models = [key for key in gguf if not _is_beside(key)]
    others = [key for key in gguf if key not in models and "mmproj" not in key.lower()]
    if ref.pattern and (first := _first_shard(ref.pattern)) in gguf:
        keys, why = [first], ""
    elif named := _named(ref, files):
        if not named[0].lower().endswith(".gguf"):
            fix = f"name no file, and safetensors are converted: hf:{ref.repo}"
            raise UsageError(f"{named[0]} is not a GGUF model", where=where, fix=fix)
        keys, why = list(dict.fromkeys(map(_first_shard, named))), ""
    elif ref.pattern:
        keys, why = _fitting(ref.pattern, gguf, models, others)
    elif models:
        keys, why = _usual(models)
    elif others:
        raise _unclear(ref, listing, gguf, others, False)
    else:
        fix = "name a repository with GGUF or safetensors files"
        raise UsageError("there is no GGUF model in this repository", where=where, fix=fix)
    if len(keys) != 1:
        raise _unclear(ref, listing, gguf, keys or models or others or list(gguf), bool(keys))
    if has_weights and not gguf:
        fix = f"name no file, and the safetensors are converted: hf:{ref.repo}"
        raise UsageError("there is no GGUF model in this repository", where=where, fix=fix)
    names = _whole(keys[0], files, where)
    if why:
        n_bytes = total_bytes({name: files[name] for name in names})
        why = f"{ref}: taking {keys[0]} ({size(n_bytes)}), {why}"
    return Choice(tuple(names), why)


def of_imatrix(ref: HubRef, listing: Listing) -> Choice:
    """Return the importance matrix that is meant: what is named, else the only one."""
    names = _named(ref, listing.files)
    for patterns in ((ref.pattern,),) if ref.pattern else _IMATRIX_NAMES:
        names = names or [n for n in listing.files if any(_fits(n, p) for p in patterns)]
    if len(names) != 1:
        shown = {name: [name] for name in names or listing.files}
        raise _unclear(ref, listing, shown, list(shown), bool(names))
    return Choice(tuple(names))


def _models(files: Files) -> dict[str, list[str]]:
    """Return the GGUF models: name of the first file -> files."""
    models: dict[str, list[str]] = {}
    for name in sorted(files):
        if name.lower().endswith(".gguf"):
            models.setdefault(_first_shard(name), []).append(name)
    return models


def _is_beside(name: str) -> bool:
    return any(word in PurePosixPath(name).name.lower() for word in _BESIDE)


def _first_shard(name: str) -> str:
    return _SHARD.sub(r"\g<stem>-00001-of-\g<count>.gguf", name)


def _named(ref: HubRef, files: Files) -> list[str]:
    """Return the file of that path, else those of that name in any folder and any case."""
    pattern = ref.pattern or ""
    words = {pattern, f"{pattern}.gguf"}
    folded = {word.casefold() for word in words}
    tests: tuple[Callable[[str], bool], ...] = (
        lambda name: name in words,
        lambda name: PurePosixPath(name).name in words,
        lambda name: not folded.isdisjoint((name.casefold(), PurePosixPath(name.casefold()).name)),
    )
    named = ([name for name in sorted(files) if test(name)] for test in tests)
    return next(filter(None, named), [])


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(PurePosixPath(name).name, pattern)


def _fitting(
    pattern: str, gguf: dict[str, list[str]], models: Sequence[str], others: Sequence[str]
) -> tuple[list[str], str]:
    """Return the models of a glob or a type, and why if the type fits several."""
    if re.search(r"[*?\[]", pattern):
        fit = [key for key, names in gguf.items() if any(_fits(n, pattern) for n in names)]
        return [key for key in fit if key in models] or fit, ""
    tag = re.escape(pattern)
    for keys in (models, others):
        # as a word of its own; then, like llama.cpp, at the end of one
        for expression in (rf"(^|[-._/]){tag}[-./]", rf"{tag}[-.]"):
            fit = [key for key in keys if re.search(expression, key, re.IGNORECASE)]
            if fit:
                return fit[:1], f"the first of {len(fit)} of that type" if len(fit) > 1 else ""
    return [], ""


def _usual(models: Sequence[str]) -> tuple[list[str], str]:
    """Return the model to take if none is named, and why."""
    if len(models) == 1:
        return list(models), ""
    other = "name another type after a colon"
    for quant_type in _FULL_PRECISION:
        if fit := [key for key in models if _type_of(key) == quant_type]:
            return fit[:1], f"the full precision of {len(models)} models; {other}"
    why = f"as llama.cpp does: none of {len(models)} models has full precision; {other}"
    for quant_type in _USUAL:
        if fit := _fitting(quant_type, {}, models, ())[0]:
            return fit, why
    return list(models[:1]), why


def _type_of(name: str) -> str:
    """Return the last word of a name, or of its folder, where a full precision stands."""
    path = PurePosixPath(re.sub(r"-\d{5}-of-\d{5}(?=\.)", "", name).lower())
    last = re.split(r"[-._]", path.stem)[-1]
    return last if last in _FULL_PRECISION else path.parent.name


def _whole(first: str, files: Files, where: str) -> list[str]:
    """Return all shards of a model."""
    shard = _SHARD.fullmatch(first)
    if not shard:
        return [first]
    count = int(shard["count"])
    whole = [f"{shard['stem']}-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]
    if missing := [name for name in whole if name not in files]:
        what = f"the split model lacks {len(missing)} of {count} files: {', '.join(missing[:3])}"
        fix = "choose another file or revision, or tell the publisher"
        raise FetchFailed(what, where=where, fix=fix)
    return whole


def _unclear(
    ref: HubRef, listing: Listing, files: dict[str, list[str]], keys: Sequence[str], several: bool
) -> UsageError:
    """Return that several files are meant, or none, with those there are."""
    where = f"{ref.repo} at commit {listing.commit}"
    if not keys:
        return UsageError("there is no such file in this repository", where=where)
    sizes = {k: total_bytes({n: listing.files[n] for n in files[k]}) for k in keys[:40]}
    listed = "".join(f"\n    {key}  {size(n_bytes)}" for key, n_bytes in sizes.items())
    what = f"{len(keys)} files match {ref}" if several else f"no file matches {ref}"
    fix = f"'{HubRef(ref.repo, ref.revision, keys[0])}'"
    return UsageError(f"{what}; candidates:{listed}", where=where, fix=fix)
