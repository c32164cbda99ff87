"""Models by name, and the facts in their headers.

demo                            the embedded default (demo.py)
path/model.gguf                 a file; any shard of a split model
hf:org/repo[@revision][:file]   the Hugging Face Hub, or an address of it (hub_spec.py)
"""

import contextlib
import hashlib
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

import gguf

from imatrix_lab.core import digests
from imatrix_lab.core.names import model_label, readable
from imatrix_lab.core.paths import expanded, pip_install
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import NotBuilt, Store
from imatrix_lab.errors import BadModel, UsageError
from imatrix_lab.llamacpp import size_types, toolchain
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models import conditions, demo, hub, hub_spec, loading
from imatrix_lab.models.gguf import ArraySummary, GgufHeader, TensorInfo, read_header, shard_paths
from imatrix_lab.types import Model, ModelFacts

K_QUANT_COLUMNS = 256
SIZE = "imatrix_lab.size"
"""In the metadata of a quant whose tensors' types were chosen for a size."""
INT4 = "imatrix_lab.int4"
"""In the metadata of a file whose F16 weights stand for another type: see `quantize.int4`."""
_UNQUANTIZED = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid|altup|laurel|per_layer_model_proj"
    r"|^position_embd|^token_types|ssm_conv1d|shortconv\.conv\.weight|indexer\.[kq]_proj"
    r"|time_mix_(first|w[012]|v[012]|a[012]|g[12]|decay_w[12]|lerp_fused)\.weight|attn_rel_b\.weight"
    r"|\.position_embd|\.rel_pos|\.patch_embd|\.patch_merger"
)


def resolve(spec: str, session: Session, tools: Toolchain | None = None) -> Model:
    """Return the model a user named, fetched or built if needed.

    `tools` convert ``hf:`` repositories without GGUF files; by default those built already.
    """
    notice: tuple[Path, ...] = ()
    known: dict[Path, str] = {}  # sha256 recorded in the store
    if spec == "demo":
        artifact = demo.fetch(session)
        path = artifact.path / demo.FILE
        notice = tuple(sorted(p for p in artifact.path.iterdir() if p.suffix in {".md", ".html"}))
        label, origin, base_model = "demo", "demo", str(artifact.facts["base_model"])
        known = {path: artifact.sha256(demo.FILE)}
    elif hub_spec.is_spec(spec):
        ref = hub_spec.parse(spec)
        tools = tools or toolchain.find(session.store, toolchain.default_backend())
        converter = hub.Converter(tools.commit, tools.convert_script) if tools else None
        path = hub.fetch(ref, session, converter)[0]
        label, base_model = _label(path), ref.repo
        origin = hub.origin_of(path, base_model)
        known = {p: hub.sha256_of(p, session) for p in shard_paths(path)}
    else:
        path = _local(spec)
        label, origin, base_model = _label(path), readable(path.name), ""
    shards = shard_paths(path)
    header = facts(shards)
    sha256s = [known.get(p) or digests.sha256_of(p, session) for p in shards]
    sha256 = joined_sha256(sha256s)
    return Model(label, shards[0], shards, sha256, header, origin, base_model, notice)


def joined_sha256(sha256s: Sequence[str]) -> str:
    """Return the sha256 of a model: of its file, or of its shards' joined sha256."""
    return (
        sha256s[0] if len(sha256s) == 1 else hashlib.sha256("".join(sha256s).encode()).hexdigest()
    )


def resolve_to_run(spec: str, session: Session, tools: Toolchain) -> Model:
    """Return the model a user named, to run text through; what is odd about it is said once.

    Raises BadModel, with llama.cpp's reason: it cannot run text through it.
    """
    model = resolve(spec, session, tools)
    conditions.require_text(model.facts, model.path)
    for condition in model.facts.conditions:
        session.say_once(model.path.name, str(condition))
    if spec != "demo" and not model.path.is_relative_to(session.store.root):
        with contextlib.suppress(NotBuilt):  # a plan loads no model
            say_warnings(loading.warnings_of(tools, model, session), model, session)
    return model


def say_warnings(warnings: Iterable[str], model: Model, session: Session) -> None:
    """Pass on what llama.cpp warns of in a model, once; what it says of the demo is known."""
    for warning in warnings if model.origin != "demo" else ():
        session.say_once(f"llama.cpp warns of {model.path.name}", warning)


def check_spec(spec: str, store: Store | None = None) -> None:
    """Raise what `resolve_to_run` would for a wrong name or a bad file, before any work."""
    if spec == "demo":
        demo.check(store or Store())
    elif hub_spec.is_spec(spec):
        hub.check(hub_spec.parse(spec), store or Store())
    else:
        shards = shard_paths(_local(spec))
        conditions.require_text(facts(shards), shards[0])


def is_local(spec: str) -> bool:
    """Whether a model is a file of the user's."""
    return spec != "demo" and not hub_spec.is_spec(spec)


def files_of(spec: str) -> tuple[Path, ...]:
    """Return the user's own files that a model is read from."""
    return shard_paths(_local(spec)) if is_local(spec) else ()


def unhashed(spec: str) -> Model | None:
    """Return a model that is a file here as its header has it, or None; its sha256 is empty."""
    if not (files := files_of(spec)):
        return None
    return Model(_label(files[0]), files[0], files, "", facts(files), files[0].name)


def label_of(spec: str) -> str:
    """Return the name of a model as far as it is known before it is fetched; "" if not."""
    return _label(_local(spec)) if is_local(spec) else "demo" if spec == "demo" else ""


def _local(spec: str) -> Path:
    path = expanded(spec).absolute()  # programs run in folders of their own
    if path.suffix == ".safetensors" and path.is_file():
        path = path.parent
    if path.is_dir():
        raise _folder(path)
    if path.suffix != ".gguf" and not path.exists():
        fix = "--model demo, --model path/x.gguf or --model hf:org/repo[@revision][:file]"
        if re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", spec, re.ASCII):
            fix = f"if it is on the Hub: --model hf:{spec}"
        raise UsageError(f"{spec!r} is not a model", fix=fix)
    return path


def _folder(path: Path) -> UsageError:
    """Return what a folder holds that a model can be made of, and how."""
    if models := sorted(path.glob("*.gguf")):
        what = f"this is a folder, with {len(models)} GGUF files; name one of them"
        return UsageError(what, where=path, fix=f"--model {shlex.quote(str(models[0]))}")
    if path.name.startswith("models--"):
        repo = path.name.removeprefix("models--").replace("--", "/")
        what = "this is the Hub's cache of a repository"
        return UsageError(what, where=path, fix=f"--model hf:{repo}")
    weights = [*path.glob("*.safetensors"), *path.glob("pytorch_model*.bin")]
    if not weights or not (path / "config.json").is_file():
        return UsageError("this is a folder without a model", where=path, fix="name a GGUF file")
    what = f"this folder holds {weights[0].suffix} files; llama.cpp's converter makes GGUF of them"
    tools = toolchain.find(Store(), toolchain.default_backend())
    if not tools:
        return UsageError(what, where=path, fix="imatrix-lab toolchain build")
    target = f"{path.name}-{{OUTTYPE}}.gguf"
    words = [sys.executable, str(tools.convert_script), str(path), "--outfile", target]
    install = f"{pip_install(hub.CONVERT_EXTRA)}; " if hub.missing_packages() else ""
    return UsageError(what, where=path, fix=f"{install}{shlex.join(words)} --outtype auto")


def _label(path: Path) -> str:
    """Return a file's name without shard number, suffix and full-precision type."""
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", path.stem)
    return model_label(re.sub(r"[-_.](f16|bf16|f32)$", "", stem, flags=re.IGNORECASE))


def facts(shards: tuple[Path, ...]) -> ModelFacts:
    """Return the facts in the headers of a model's shards."""
    headers = [read_header(path) for path in shards]
    first, tensors = headers[0], [t for h in headers for t in h.tensors]
    arch = first.text("general.architecture")
    conditions.require_model(first, shards[0])
    if (expected := first.integer("split.tensors.count", len(tensors))) != len(tensors):
        raise _incomplete(first, shards, len(tensors), expected)
    n_parameters = sum(t.n_elements for t in tensors)
    data_bytes = sum(t.size_bytes for t in tensors)
    return ModelFacts(
        architecture=arch,
        name=first.text("general.name", readable(shards[0].stem)),
        license=first.text("general.license"),
        n_parameters=n_parameters,
        n_layers=first.integer(f"{arch}.block_count"),
        channels=first.integer(f"{arch}.embedding_length"),
        n_vocab=_n_vocab(first),
        n_ctx_train=first.integer(f"{arch}.context_length"),
        n_experts=first.integer(f"{arch}.expert_count"),
        file_type=_file_type(first, tensors),
        size_bytes=sum(path.stat().st_size for path in shards),
        bits_per_weight=8 * data_bytes / n_parameters,
        tensor_types=dict(sorted(Counter(t.type_name for t in tensors).items())),
        fallback=tuple(t.name for t in tensors if quantizable(t) and t.shape[0] % K_QUANT_COLUMNS),
        imatrix_sha256=first.text("imatrix_lab.imatrix.sha256"),
        calibration=_calibration(first),
        adds_end=conditions.adds_end(first),
        n_mtp_layers=first.integer(f"{arch}.nextn_predict_layers"),
        conditions=conditions.of(first, tensors),
    )


def _incomplete(
    header: GgufHeader, shards: tuple[Path, ...], n_tensors: int, expected: int
) -> BadModel:
    """Return the error for a split model that is not all there."""
    n_parts = header.integer("split.count")
    if n_parts > 1 and len(shards) == 1:
        number = header.integer("split.no") + 1
        what = f"this is part {number} of {n_parts} of a split model, under another name"
        fix = f"name the parts NAME-{number:05d}-of-{n_parts:05d}.gguf and so on, in one folder"
    else:
        what = f"{n_tensors} tensors in all parts, {expected} announced: parts of two models?"
        fix = "fetch all parts again, from one place"
    return BadModel(what, where=shards[0], fix=fix)


def _calibration(header: GgufHeader) -> str:
    """Return the label of a quant's imatrix, and whether AWQ and feedback were used.

    Of others' files: the imatrix's name.
    """
    if ours := header.text("imatrix_lab.language") or header.text("imatrix_lab.label"):
        ours += "".join(f"-{x}" for x in ("awq", "feedback") if header.text(f"imatrix_lab.{x}"))
        return ours  # a mixture's may have a dot: nb33.3-en66.7
    named = header.text("quantize.imatrix.dataset") or header.text("quantize.imatrix.file")
    return PurePath(named.replace("\\", "/")).name.partition(".")[0]


def spec_of(model: Model) -> str:
    """Return how to name a model in a shell's command line; a file by its path on this machine."""
    named = model.origin == "demo" or model.origin.startswith("hf:")
    return shlex.quote(model.origin if named else str(model.path))


def quantizable(tensor: TensorInfo) -> bool:
    """Return whether llama-quantize would quantize a tensor (see llama-quant.cpp)."""
    is_matrix = any(n > 1 for n in tensor.shape[1:]) and tensor.name.endswith("weight")
    return is_matrix and not _UNQUANTIZED.search(tensor.name)


def _n_vocab(header: GgufHeader) -> int:
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    return tokens.length if isinstance(tokens, ArraySummary) else len(tokens or [])


def _file_type(header: GgufHeader, tensors: list[TensorInfo]) -> str:
    """Return the file's type: as its metadata has it, else the most common of its tensors.

    A file of ours whose types were chosen for a size is of that size: ``size:Q4_K_M``.
    """
    if int4 := header.text(INT4):
        return int4
    if size := header.text(SIZE):
        return size_types.PREFIX + size
    with contextlib.suppress(ValueError, KeyError):
        file_type = gguf.LlamaFileType(header.metadata["general.file_type"])
        if file_type != gguf.LlamaFileType.GUESSED:
            return str(file_type.name.removeprefix("MOSTLY_").removeprefix("ALL_"))
    bits: Counter[str] = Counter()
    for tensor in tensors:
        bits[tensor.type_name] += tensor.n_elements
    return f"mostly {bits.most_common(1)[0][0]}"
