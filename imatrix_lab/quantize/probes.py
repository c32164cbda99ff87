"""Measuring sensitivities: one group of tensors at a coarse type at a time, in memory.

One model is loaded. It reads a little calibration text, and its logits are kept on disk; then,
group by group, the tensors are replaced by a coarse quant of themselves (ggml's own search with the
imatrix), the same text is read, and the divergence of each piece of text is noted. A group is
probed with each kind of type (`sensitivity.KINDS`), with a finer one of the kind where the first
diverges by more than `KLD_MAX`, beyond which divergence is no longer in proportion to the error.
Text is added until two halves of it rank the groups alike. Each probe is kept once it is finished:
a run that was killed goes on from there.
"""

import contextlib
import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.core.files import from_json, need_room, write_whole
from imatrix_lab.core.format import duration, size
from imatrix_lab.core.session import Session
from imatrix_lab.corpus.documents import JOINT
from imatrix_lab.errors import BadModel, BadText, ImatrixLabError
from imatrix_lab.imatrix import format
from imatrix_lab.imatrix.format import layer_and_role
from imatrix_lab.llamacpp import ggml
from imatrix_lab.llamacpp.compute import memory_bytes, on_gpu
from imatrix_lab.llamacpp.native import Interruptible
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models import weights
from imatrix_lab.models.chance import Chance
from imatrix_lab.models.gguf import TensorInfo
from imatrix_lab.models.resolve import quantizable
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.quantize import errors, sensitivity
from imatrix_lab.quantize.errors import Language
from imatrix_lab.quantize.sensitivity import SUFFIX, Sensitivity
from imatrix_lab.score import job, kernel
from imatrix_lab.score.checkpoint import Checkpoint
from imatrix_lab.score.engine import Settings, rates
from imatrix_lab.score.kernel import Kernel, Rows
from imatrix_lab.score.patched import Patched
from imatrix_lab.score.windows import Protocol, Step, Window, batches, document_windows, steps
from imatrix_lab.types import ComputeOptions, CorpusFacts, ImatrixFacts, Model, ModelFacts, Part

KLD_MAX = 1.0
"""Nats a token: a probe that diverges by more takes a finer type.

Rather too strong a probe than too fine a one: on the demo model the embedding loses 30 % of its
coefficient at 1.6 nats in Bokmål, but two thirds of it at 0.08 nats (Q6_K) in Malayalam."""
PIECE_TOKENS, PIECES_MIN, PIECES_MAX, SEED = 96, 8, 32, 0
"""Tokens of a piece of text, and how many pieces are read at least and at most."""
AGREEMENT = 0.9
"""Spearman's correlation of the coefficients of two halves of the text that is enough: all of the
text is then reliable to 0.95 (Spearman and Brown 1910)."""
BATCH_PIECES = 2
OUTLIERS_AT = "Q4_K"
"""The type at which tensors of a role are compared."""
_FILE, _PROBES, _PART = f"language{SUFFIX}", "probes", "probes.json"
_LEAST_TOKENS = 16

Advance = Callable[[int, str], None]
"""Hears of tokens just read, and what they were read with."""


@dataclass(frozen=True)
class Probing:
    """What is probed, and with what.

    imatrix : what groups are quantized with.
    language : what errors are weighed by.
    windows : pieces of calibration text, in order.
    alone : tensors that are probed alone.
    """

    tools: Toolchain
    kernel: Kernel
    model: Model
    settings: Settings
    imatrix: ImatrixFacts
    language: Language
    windows: Sequence[Window]
    alone: Sequence[str] = ()

    @property
    def label(self) -> str:
        """The language's name."""
        return self.imatrix.language

    def groups(self) -> dict[str, list[str]]:
        """Return the names of each group's tensors, in the file's order."""
        return groups(self.model, self.alone)

    def n_tokens(self, n_pieces: int) -> int:
        """Return the scored tokens of the first pieces."""
        return sum(w.n_scored for w in self.windows[:n_pieces])


def groups(model: Model, alone: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return the names of each group's tensors, in the file's order."""
    groups: dict[str, list[str]] = {}
    for name, (_, info) in weights.tensors(model).items():
        if _is_probed(info, model.facts):
            group = sensitivity.group_of(name, model.facts.n_layers)
            if name in alone:
                group = sensitivity.alone_as(name)
            groups.setdefault(group, []).append(name)
    return groups


def n_probes(model: Model) -> int:
    """Return how many probes a model takes, but for tensors that are probed alone."""
    return len(groups(model)) * len(sensitivity.KINDS)


def _is_probed(info: TensorInfo, facts: ModelFacts) -> bool:
    """Return whether a tensor can be quantized, and text reaches it: MTP layers see none."""
    layer = layer_and_role(info.name)[0] or 0
    fits = all(_actual(rungs[0], info.shape[0]) != "F16" for rungs in sensitivity.KINDS.values())
    is_open = quantizable(info) and info.type_name not in errors.PUBLISHED
    return is_open and fits and layer < max(1, facts.n_layers - facts.n_mtp_layers)


def _actual(type_name: str, n_columns: int) -> str:
    """Return the type that a probe takes where rows are no whole blocks: one of the same kind."""
    taken = errors.fallback(type_name, n_columns)
    is_same = sensitivity.kind_of(taken) == sensitivity.kind_of(type_name)
    return taken if is_same else errors.fallback("Q4_1", n_columns)


def sensitivity_of(
    tools: Toolchain,
    model: Model,
    text: tuple[CorpusFacts, ImatrixFacts],
    compute: ComputeOptions,
    session: Session,
    probed: Iterable[Path] = (),
) -> Sensitivity:
    """Return the coefficients of a text with its imatrix, measured if the store lacks them.

    probed : files of `some_probes`, which are not repeated.
    """
    corpus, _ = text
    what = probing(tools, model, text, compute, session)
    inputs = _inputs(what, corpus.sha256)

    def make(out: Path, scratch: Path) -> Mapping[str, Any]:
        kept = [probe for file in probed for probe in from_json(file.read_bytes())]
        measured = measure(what, inputs, scratch, session, kept)
        sensitivity.write(out / _FILE, measured)
        return {"n_groups": len(measured.coefficients), "n_tokens": sum(measured.tokens)}

    label = f"{model.label}-{corpus.language}"
    artifact = session.store.get("sensitivity", label, inputs, make, session.progress)
    measured = sensitivity.read(artifact.path / _FILE)
    return replace(measured, language=corpus.language)


def some_probes(
    tools: Toolchain,
    model: Model,
    text: tuple[CorpusFacts, ImatrixFacts],
    compute: ComputeOptions,
    part: Part,
    session: Session,
) -> Path:
    """Return a file of the probes of a part of the groups, on the pieces that are read first.

    part : of the groups, with each kind of type.
    """
    corpus, _ = text
    what = probing(tools, model, text, compute, session)
    inputs = _inputs(what, corpus.sha256)

    def make(out: Path, scratch: Path) -> Mapping[str, Any]:
        run = Run(what, scratch, session)
        probes = run.probed(min(PIECES_MIN, len(what.windows)), run.keys[part[0] :: part[1]])
        (out / _PART).write_text(json.dumps([_as_kept(*item) for item in probes.items()]))
        return {"n_probes": len(probes)}

    label = f"{model.label}-{corpus.language}"
    own = {**inputs, "part": list(part)}
    return session.store.get(_PROBES, label, own, make, session.progress).path / _PART


def probing(
    tools: Toolchain,
    model: Model,
    text: tuple[CorpusFacts, ImatrixFacts],
    compute: ComputeOptions,
    session: Session,
) -> Probing:
    """Return what is probed for a text with its imatrix."""
    corpus, imatrix = text
    check_memory(model.facts, compute, model.path)
    settings = job.placed(tools, [model], settings_for(model, compute), compute, session)
    with Vocabulary(tools, model.path, corpus.parse_special) as vocabulary:
        windows = pieces(corpus, vocabulary)
        language = language_of(corpus, imatrix, vocabulary)
    compiled = kernel.get(tools, settings.threads, session)
    imatrix = replace(imatrix, language=corpus.language)
    whole = Probing(tools, compiled, model, settings, imatrix, language, windows)
    return replace(whole, alone=sensitivity.outliers(errors_at(whole, OUTLIERS_AT, session)))


def language_of(corpus: CorpusFacts, imatrix: ImatrixFacts, vocabulary: Vocabulary) -> Language:
    """Return what weighs errors for a language: its imatrix, and the tokens of its text."""
    tokens = vocabulary.tokens(corpus.calibration.read_bytes().decode(), add_special=False)
    return Language(format.read(imatrix.path), np.bincount(tokens, minlength=vocabulary.n_tokens()))


def check_memory(facts: ModelFacts, compute: ComputeOptions, path: Path) -> None:
    """Raise ImatrixLabError for a model that does not fit in memory: its weights are changed."""
    if not on_gpu(compute) and facts.size_bytes > (memory := memory_bytes()):
        what = f"sensitivities need the whole model in memory: {size(facts.size_bytes)}, and this"
        fix = "a Q8_0 of it, or a machine with more memory"
        raise ImatrixLabError(f"{what} machine has {size(memory)}", where=path, fix=fix)


def settings_for(model: Model, compute: ComputeOptions) -> Settings:
    """Return how to run a model on pieces of text: as it is scored."""
    settings = job.settings_for(model, compute, PIECE_TOKENS)
    n_ctx = BATCH_PIECES * (PIECE_TOKENS + 1)
    sequences_max = min(settings.sequences_max, BATCH_PIECES)
    n_batch = min(n_ctx, settings.n_batch)
    return replace(settings, n_ctx=n_ctx, n_batch=n_batch, sequences_max=sequences_max)


def pieces(corpus: CorpusFacts, vocabulary: Vocabulary) -> list[Window]:
    """Return pieces of a calibration text from all over it, in an order given by the seed.

    A piece begins with a paragraph. Raises BadText: there are not two pieces.
    """
    paragraphs = [p for p in corpus.calibration.read_bytes().decode().split(JOINT) if p.strip()]
    starts = sorted({i * len(paragraphs) // PIECES_MAX for i in range(PIECES_MAX)})
    ends = [*starts[1:], len(paragraphs)]
    parts = [JOINT.join(paragraphs[a:b]) for a, b in zip(starts, ends, strict=True)]
    random.Random(SEED).shuffle(parts)
    n_chars = 32 * PIECE_TOKENS  # more than any vocabulary packs into so many tokens
    tokens = [vocabulary.tokens(p[:n_chars], add_special=False)[:PIECE_TOKENS] for p in parts]
    tokens = [piece for piece in tokens if len(piece) >= _LEAST_TOKENS]
    if len(tokens) < 2:
        what = f"sensitivities need two paragraphs of {_LEAST_TOKENS} tokens or more"
        raise BadText(what, where=corpus.calibration, fix="give a longer text")
    return document_windows(tokens, vocabulary.bos(), Protocol("document", PIECE_TOKENS + 2, 1))


def _inputs(probing: Probing, corpus_sha256: str) -> dict[str, Any]:
    """Return what determines the coefficients."""
    text = [PIECE_TOKENS, PIECES_MIN, PIECES_MAX, SEED, AGREEMENT]
    return {
        "version": [sensitivity.VERSION, errors.VERSION],
        "model_sha256": probing.model.sha256,
        "corpus_sha256": corpus_sha256,
        "imatrix_sha256": probing.imatrix.sha256,
        "probes": [sensitivity.KINDS, KLD_MAX, *text],
        "settings": probing.settings.signature(),
        "toolchain": probing.tools.signature(),
    }


_Key = tuple[str, str]
"""Of a probe: group and kind of type."""


@dataclass
class _Probe:
    """What is known of a group with a kind of type: its type, and the divergence of each piece."""

    type: str
    kld_nats: list[float]


def _as_kept(key: _Key, probe: _Probe) -> dict[str, Any]:
    return {"group": key[0], "kind": key[1], **vars(probe)}


def measure(
    probing: Probing,
    signature: Mapping[str, Any],
    scratch: Path,
    session: Session,
    kept: Iterable[Mapping[str, Any]] = (),
) -> Sensitivity:
    """Return every group's coefficient, from as many pieces as the ranking of groups needs.

    `kept`: probes that were measured elsewhere.
    """
    run, where = Run(probing, scratch, session, kept), probing.model.path
    n_pieces, n_all = min(PIECES_MIN, len(probing.windows)), len(probing.windows)
    session.progress.say(
        f"sensitivity of {probing.label}: {len(run.groups)} groups of tensors, each with"
        f" {len(sensitivity.KINDS)} kinds of types on {probing.n_tokens(n_pieces):,} tokens; if two"
        f" halves of them do not agree, on up to {probing.n_tokens(n_all):,}"
    )
    while True:
        probes = run.probed(n_pieces)
        measured = _with_errors(probing, probes, n_pieces, signature, session)
        agreement = sensitivity.ranking_agreement(measured)
        if not measured.coefficients:
            raise BadModel("coarse weights change nothing that this model predicts", where=where)
        if n_pieces == n_all or not agreement < AGREEMENT:
            return measured
        n_pieces = min(2 * n_pieces, n_all)
        session.progress.say(
            f"two halves of the text rank the groups alike by {agreement:.2f} (Spearman), less"
            f" than {AGREEMENT}: on to {probing.n_tokens(n_pieces):,} tokens"
        )


def _with_errors(
    probing: Probing,
    probes: Mapping[_Key, _Probe],
    n_pieces: int,
    signature: Mapping[str, Any],
    session: Session,
) -> Sensitivity:
    """Return the coefficients: each group's divergence by the sum of its tensors' errors.

    Where one kind of type changes nothing, the other speaks for it.
    """
    p = probing
    types = {probe.type for probe in probes.values()}
    by_type = {type_name: errors_at(p, type_name, session) for type_name in sorted(types)}
    tokens = tuple(w.n_scored for w in p.windows[:n_pieces])
    coefficients: dict[str, dict[str, sensitivity.Coefficient]] = {}
    groups = p.groups()
    for (group, kind), probe in probes.items():
        error = sum(by_type[probe.type][name] for name in groups[group])
        klds = probe.kld_nats[:n_pieces]
        if error > 0 and any(klds):
            measured = sensitivity.coefficient(probe.type, error, klds, tokens)
            coefficients.setdefault(group, {})[kind] = measured
    for kinds in coefficients.values():
        for kind in sensitivity.KINDS:
            kinds.setdefault(kind, next(iter(kinds.values())))
    values = p.label, p.model.sha256, p.model.facts.n_layers, tokens
    return Sensitivity(*values, coefficients, signature)


def errors_at(probing: Probing, type_name: str, session: Session) -> dict[str, float]:
    """Return what each tensor that is probed loses at a type."""
    p = probing
    languages, threads = {p.label: p.language}, p.settings.threads
    offered = errors.options(p.tools, p.model, p.imatrix, [type_name], languages, session, threads)
    infos = {name: tensor.info for name, tensor in weights.tensors(p.model).items()}
    return {
        name: offered[name][_actual(type_name, infos[name].shape[0])].errors[p.label]
        for names in p.groups().values()
        for name in names
    }


class Run:
    """One measurement, and what it has kept on disk; others have `kept` some probes before."""

    def __init__(
        self,
        probing: Probing,
        scratch: Path,
        session: Session,
        kept: Iterable[Mapping[str, Any]] = (),
    ):
        self._before = {(probe["group"], probe["kind"]): probe for probe in kept}
        self.probing, self.scratch, self.session = probing, scratch, session
        self.groups, settings = probing.groups(), probing.settings
        self.keys = [(group, kind) for group in self.groups for kind in sensitivity.KINDS]
        self.batches = batches(probing.windows, settings.n_ctx, settings.sequences_max)
        self.firsts = np.cumsum([0, *map(len, self.batches)])  # each batch's first piece
        self.sizes = [sum(w.n_scored for w in batch) for batch in self.batches]
        self.reference = Checkpoint(scratch, self.sizes, "reference")
        self.ggml, self.imatrix = ggml.load(probing.tools), format.read(probing.imatrix.path)
        self.tensors = weights.tensors(probing.model)
        self._sums: dict[tuple[int, int], Rows] = {}

    def probed(self, n_pieces: int, keys: Sequence[_Key] | None = None) -> dict[_Key, _Probe]:
        """Return every group's probes on the first pieces, or some; what is missing is measured."""
        needed = self.first(n_pieces)
        probes = {key: self._kept(key) for key in (self.keys if keys is None else keys)}
        missing = {
            key: [b for b in needed if self.firsts[b] >= len(probe.kld_nats)]
            for key, probe in probes.items()
        }
        unread = [b for b in needed if not self.reference.has(b)]
        if any(missing.values()):
            self._measure(probes, missing, unread)
        return probes

    def _measure(
        self, probes: dict[_Key, _Probe], missing: dict[_Key, list[int]], unread: list[int]
    ) -> None:
        p, progress = self.probing, self.session.progress
        work = sum(self.sizes[b] for some in (unread, *missing.values()) for b in some)
        with (
            progress.task(f"sensitivity {p.label}", work, "tokens") as task,
            Patched(p.tools, p.kernel, p.model, p.settings, Interruptible()) as engine,
        ):
            engine.open_tensors(p.tools, self.ggml, self.session)
            done = 0

            def advance(n_tokens: int, note: str) -> None:
                nonlocal done
                done += n_tokens
                task.update(done, note)

            self.read_reference(engine, unread, advance)
            if unread:
                per_s = engine.n_tokens / engine.seconds
                left_s = sum(self.sizes[b] for some in missing.values() for b in some) / per_s
                progress.say(f"{per_s:.0f} tokens/s: about {duration(left_s)} for the probes")
            for key, probe in probes.items():
                if missing[key]:
                    self._probe(engine, key, probe, missing[key], advance)
            progress.say(f"llama_decode, tokens/s: {rates([engine])}")

    def read_reference(
        self, engine: Patched, unread: Sequence[int], advance: Advance = lambda *_: None
    ) -> None:
        """Keep the full model's logits."""
        model, kernel = self.probing.model, self.probing.kernel
        n_bytes = sum(self.sizes[b] for b in unread) * model.facts.n_vocab * 4
        need_room(self.scratch, n_bytes, "the full model's logits")
        chance = Chance(model)
        for b in unread:
            parts = []
            for step, logits in self._decoded(engine, b):
                chance.add(job.nll(step.targets, logits, kernel.rows(logits)))
                parts.append(logits.copy())
            self.reference.add(b, np.concatenate(parts))
            advance(self.sizes[b], "the full model")

    def _probe(
        self, engine: Patched, key: _Key, probe: _Probe, missing: Sequence[int], advance: Advance
    ) -> None:
        """Add a group's divergence on the missing batches, and keep it."""
        group, kind = key
        finer = dict(itertools.pairwise(sensitivity.KINDS[kind]))
        names = [name for name in self.groups[group] if engine.has(name)]
        klds: list[float] = []
        for b in missing:
            if not klds:
                self.replace(engine, dict.fromkeys(names, probe.type))
            divergence = self._divergence(engine, b)
            while not probe.kld_nats and not klds and not np.mean(divergence) <= KLD_MAX:
                if probe.type not in finer:
                    break
                probe.type = finer[probe.type]
                self.replace(engine, dict.fromkeys(names, probe.type))
                divergence = self._divergence(engine, b)
            klds += divergence
            advance(self.sizes[b], f"{group} at {probe.type}")
        for name in names:
            engine.restore(name)
        if not np.isfinite(klds).all():
            raise BadModel(f"with {group} at {probe.type} this model gives no finite number")
        probe.kld_nats += klds
        write_whole(self._file(key), json.dumps(_as_kept(key, probe)))

    def first(self, n_pieces: int) -> list[int]:
        """Return the batches of the first pieces."""
        return [b for b in range(len(self.batches)) if self.firsts[b] < n_pieces]

    def divergence(self, engine: Patched, batches: Sequence[int]) -> float:
        """Return the mean KLD of some batches as the model is now, in nats a token."""
        return float(np.mean([kld for b in batches for kld in self._divergence(engine, b)]))

    def replace(self, engine: Patched, types: Mapping[str, str]) -> None:
        """Put what types make of tensors in their place."""
        library = self.ggml
        for name, type_name in types.items():
            if not engine.has(name):
                continue
            info = self.tensors[name].info
            importance = errors.importance_of(self.imatrix, name, info)
            actual = _actual(type_name, info.shape[0])

            def change(
                rows: NDArray[np.float32],
                matrix: int,
                importance: NDArray[np.float32] | None = importance,
                actual: str = actual,
            ) -> NDArray[np.float32]:
                by_column = None if importance is None else importance[matrix]
                return library.dequantize(library.quantize(rows, actual, by_column), actual)

            engine.replace(name, change)

    def _divergence(self, engine: Patched, batch: int) -> list[float]:
        """Return the mean KLD of each piece of a batch, in nats a token."""
        kernel, reference, at = self.probing.kernel, self.reference.rows(batch), 0
        kld = np.empty(len(reference))
        for _, logits in self._decoded(engine, batch):
            rows = slice(at, at + len(logits))
            ours = self._rows(batch, rows)
            kld[rows], at = kernel.compare(reference[rows], ours, logits).kld, rows.stop
        ends = np.cumsum([w.n_scored for w in self.batches[batch]])
        return [float(piece.mean()) for piece in np.split(kld, ends[:-1])]

    def _rows(self, batch: int, rows: slice) -> Rows:
        """Return the sums of some rows of the full model's logits, computed once."""
        key = batch, rows.start
        if key not in self._sums:
            self._sums[key] = self.probing.kernel.rows(self.reference.rows(batch)[rows])
        return self._sums[key]

    def _decoded(self, engine: Patched, batch: int) -> Iterator[tuple[Step, NDArray[np.float32]]]:
        settings = self.probing.settings
        engine.begin()
        for step in steps(self.batches[batch], settings.n_batch, settings.n_rows):
            yield step, engine.decode(step)

    def _file(self, key: _Key) -> Path:
        return self.scratch / f"probe-{self.keys.index(key):04d}.json"

    def _kept(self, key: _Key) -> _Probe:
        """Return what an earlier run, or another, has measured of a group."""
        kept = self._before.get(key)
        with contextlib.suppress(OSError, ValueError, KeyError):
            own = from_json(self._file(key).read_text(encoding="utf-8"))
            kept = own if (own["group"], own["kind"]) == key else kept
        if kept:
            return _Probe(kept["type"], [*kept["kld_nats"]])
        return _Probe(sensitivity.KINDS[key[1]][0], [])
