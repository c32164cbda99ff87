"""The best types of a size: errors, sensitivities and choice joined, for one model and imatrix."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from imatrix_lab.core import format
from imatrix_lab.core.session import Session
from imatrix_lab.corpus import languages
from imatrix_lab.errors import BadRecords, UsageError
from imatrix_lab.llamacpp import ggml, programs, size_types
from imatrix_lab.llamacpp.compute import compute_for
from imatrix_lab.llamacpp.toolchain import IN_MEMORY, Toolchain
from imatrix_lab.models import resolve
from imatrix_lab.models.gguf import TensorInfo
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.quantize import allocate, errors, interactions, probes, run, sensitivity, sizes
from imatrix_lab.quantize.allocate import Candidate, Candidates, Choice, Goal
from imatrix_lab.quantize.errors import Language, Options
from imatrix_lab.quantize.interactions import Together
from imatrix_lab.quantize.metadata import Value
from imatrix_lab.quantize.sensitivity import SUFFIX, Sensitivity
from imatrix_lab.types import CorpusFacts, ImatrixFacts, Model, Request, TypeChoice

STANDARD = (
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S",
    "Q2_K",
)  # fmt: skip
"""Standard types, of which the one nearest in size is what a choice is compared with."""
CPU_TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "IQ4_XS", "Q3_K", "Q2_K")
GPU_TYPES = (*CPU_TYPES, "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS")
"""What runs fast: the IQ types of 3 bits and less take several times as long on a CPU."""
_WHOLE = ("F32", "F16", "BF16")
_BASES = {"Q2_K_S": "Q2_K"}
"""With Q2_K_S, llama-quantize refuses tensors at Q2_K that the imatrix lacks."""

Texts = Mapping[str, tuple[CorpusFacts, ImatrixFacts]]
"""Languages with their calibration text, and what that makes important."""


@dataclass(frozen=True)
class Chosen:
    """The types of a file of a size, and what they are predicted to lose.

    Attributes
    ----------
    limit_bytes : the most that the file may have.
    predicted_kld_nats : by language: those it is for, and others that are known.
    standard : the standard type nearest in size, and the same of it.
    sensitivities : sha256 of each language's, with what they were measured.
    metadata : what the file says of it.
    """

    mix: run.Mix
    size_bytes: int
    limit_bytes: int
    weights: Mapping[str, float]
    predicted_kld_nats: Mapping[str, float]
    standard: str
    standard_size_bytes: int
    standard_kld_nats: Mapping[str, float]
    sensitivities: Mapping[str, str]
    metadata: Mapping[str, Value]

    def facts(self) -> dict[str, Any]:
        """Return what is recorded of a choice: all but the types by tensor, which have a file."""
        values = dataclasses.asdict(self)
        del values["mix"], values["metadata"]
        return values | {"base": self.mix.base, "types_by_role": by_role(self.mix.types)}


def by_role(types: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Return how many tensors of each role have each type, the largest type first."""
    counts: dict[str, dict[str, int]] = {}
    ordered = sorted(types.items(), key=lambda item: -allocate.bits_of(item[1]))
    for name, type_name in ordered:
        role = counts.setdefault(allocate.role_of(name), {})
        role[type_name] = role.get(type_name, 0) + 1
    return dict(sorted(counts.items()))


def check(request: Request) -> None:
    """Raise UsageError for what cannot be chosen, as far as request and header tell.

    Nothing is built or fetched; of a model that is not a file here, the choice itself tells.
    """
    choice, is_asked = request.choice, any(map(size_types.is_size, request.types))
    if choice != TypeChoice() and not is_asked:
        what = "--for, --at-least, --types and --no-worse-than are about files of a size"
        raise UsageError(what, fix="add --size, such as --size Q4_K_M or --size 3.5GiB")
    if not is_asked:
        return
    for language, _ in choice.languages:
        languages.get(language)
    for standard, named in choice.no_worse_than:
        _require_quantized(standard)
        for language in named:
            languages.get(language)
    for quant_type in request.types:
        if standard := size_types.standard(quant_type):
            _require_quantized(standard)
    if model := resolve.unhashed(request.model):
        check_model(request, model)


def check_model(request: Request, model: Model) -> None:
    """Raise UsageError for sizes, types and roles that a model cannot have."""
    tensors = [t for t in sizes.tensors(model) if resolve.quantizable(t)]
    roles = {allocate.role_of(t.name) for t in tensors}
    for role, type_name in request.choice.at_least:
        if role not in roles:
            what = f"no tensor of this model has the role {role!r}"
            raise UsageError(what, where=model.path, fix=f"one of: {', '.join(sorted(roles))}")
        _require_type(type_name)
    for type_name in request.choice.types:
        _require_type(type_name)
    fixed_bytes = sizes.fixed_bytes(model, 0, {t.name for t in tensors})
    ends = [_extremes(t, request) for t in tensors]
    smallest, largest = (fixed_bytes + sum(end) for end in zip(*ends, strict=True))
    for quant_type in request.types:
        if size_types.is_size(quant_type) and not size_types.standard(quant_type):
            n_bytes = size_types.n_bytes(quant_type, model.facts.n_parameters, 0)
            allocate.require_possible(n_bytes, smallest, largest)


def _extremes(tensor: TensorInfo, request: Request) -> tuple[int, int]:
    """Return a tensor's smallest and largest size in the types allowed."""
    offered = _offered(tensor, request, whole=True)
    n_bytes = [sizes.padded(errors.size_bytes(tensor, name)) for name in offered]
    return min(n_bytes), max(n_bytes)


def _offered(tensor: TensorInfo, request: Request, whole: bool) -> tuple[str, ...]:
    """Return the types allowed for a tensor with an importance; `whole`: its own too."""
    own, *others = errors.candidates(tensor, types_of(request), True)
    with_own = whole and not request.choice.types
    return (own, *others) if with_own or not others else tuple(others)


def types_of(request: Request) -> tuple[str, ...]:
    """Return the types of tensors that a request allows."""
    usual = CPU_TYPES if request.compute.backend in IN_MEMORY else GPU_TYPES
    return request.choice.types or usual


def _require_quantized(standard: str) -> None:
    if standard in _WHOLE:
        what = f"{standard} is not quantized: no types are chosen at its size"
        raise UsageError(what, fix="--size Q8_0, or smaller")


def _require_type(type_name: str) -> None:
    if type_name not in ggml.TYPES:
        fix = f"one of: {' '.join(GPU_TYPES)}"
        raise UsageError(f"{type_name} is not a type of tensors", fix=fix)


@dataclass(frozen=True)
class Case:
    """One model with one imatrix (None: without), for which types are chosen.

    `texts`: of the languages in `weights`, of those with limits, and of others that are known.
    `metadata`: of the files.
    """

    request: Request
    tools: Toolchain
    model: Model
    imatrix: ImatrixFacts | None
    texts: Texts
    weights: Mapping[str, float]
    metadata: Mapping[str, Value]
    session: Session

    def choose(self, quant_type: str) -> Chosen:
        """Return the types for a size.

        Raises UsageError: no file can have it, or none of it keeps the limits of a language.
        """
        limit_bytes = self._limit_bytes(quant_type)
        standard = size_types.standard(quant_type) or self._nearest(limit_bytes)
        types = self.standard(standard)
        left = {name: types[name] for name in types if name not in self.candidates}
        left |= {name: t for name, t in self._published.items() if name in left}
        standard_kld = allocate.predicted(self.candidates, types)
        goal = Goal(
            limit_bytes,
            self._size_bytes(left, self._metadata(quant_type), set(types)),
            self.weights,
            {language: nats for language, nats in standard_kld.items() if nats > 0},
            dict(self.request.choice.at_least),
            self._limits(self._predicted(self.candidates)),
        )
        choice = allocate.allocate(self._allowed(self.candidates, goal), goal)
        if max(choice.predicted_kld_nats[x] for x in self.weights) > interactions.ADDITIVE_NATS:
            choice, standard_kld = self._measured(choice, goal, types)
        chosen = Chosen(
            run.Mix(_BASES.get(standard, standard), {**left, **choice.types}),
            choice.size_bytes,
            limit_bytes,
            self.weights,
            choice.predicted_kld_nats,
            standard,
            self._size_bytes(types, self.metadata),
            standard_kld,
            {language: _digest(s) for language, s in self.sensitivities.items()},
            self._own_metadata(quant_type),
        )
        self.session.progress.say(told(quant_type, chosen))
        return chosen

    def _metadata(self, quant_type: str) -> dict[str, Value]:
        return {**self.metadata, **self._own_metadata(quant_type)}

    def _own_metadata(self, quant_type: str) -> dict[str, Value]:
        """Return what only files of a size have."""
        named = ",".join(f"{language}={weight:g}" for language, weight in self.weights.items())
        short = named.encode()[: programs.OVERRIDE_BYTES_MAX].decode("utf-8", "ignore")
        own = {
            resolve.SIZE: quant_type.removeprefix(size_types.PREFIX),
            f"{resolve.SIZE}.for": short,
        }
        return {**self.metadata, **own}

    def standard(self, quant_type: str) -> Mapping[str, str]:
        """Return the type that a standard type has for each tensor that can be quantized."""
        if quant_type not in self._standard:
            path = self.imatrix.path if self.imatrix else None
            changed = run.standard_types(self.tools, self.model, quant_type, self._options, path)
            own = {n: t.type_name for n, t in self._tensors.items() if resolve.quantizable(t)}
            self._standard[quant_type] = {**own, **changed}
        return self._standard[quant_type]

    @cached_property
    def _standard(self) -> dict[str, dict[str, str]]:
        return {}

    @cached_property
    def _options(self) -> run.Options:
        compute = compute_for(self.model.facts, self.request.compute)
        return run.Options(compute, self.request.allow_requantize)

    @cached_property
    def _tensors(self) -> dict[str, TensorInfo]:
        return {t.name: t for t in sizes.tensors(self.model)}

    @cached_property
    def _published(self) -> dict[str, str]:
        """Tensors in a type of a few bits that the model was published in: they stay so."""
        types = {name: t.type_name for name, t in self._tensors.items()}
        return {name: t for name, t in types.items() if t in errors.PUBLISHED}

    @cached_property
    def sensitivities(self) -> dict[str, Sensitivity]:
        """Each language's coefficients, measured if the store lacks them."""
        compute = self.request.compute
        return {
            label: probes.sensitivity_of(self.tools, self.model, text, compute, self.session)
            for label, text in self.texts.items()
        }

    @cached_property
    def every_type(self) -> Options:
        """Every tensor at every type that is allowed, or that a standard type has for it."""
        known = {label: self._language(*text) for label, text in self.texts.items()}
        types = list(dict.fromkeys((*types_of(self.request), *CPU_TYPES)))
        named = (standard for standard, _ in self.request.choice.no_worse_than)
        asked = map(size_types.standard, self.request.types)
        for standard in filter(None, (*named, *asked)):
            for name, type_name in self.standard(standard).items():
                if type_name not in errors.candidates(self._tensors[name], types, True):
                    types.append(type_name)
        threads = self._options.compute.threads
        return errors.options(
            self.tools, self.model, self.imatrix, types, known, self.session, threads
        )

    def _language(self, corpus: CorpusFacts, imatrix: ImatrixFacts) -> Language:
        with Vocabulary(self.tools, self.model.path, corpus.parse_special) as vocabulary:
            return probes.language_of(corpus, imatrix, vocabulary)

    @cached_property
    def candidates(self) -> Candidates:
        """Every tensor with an error and a coefficient in all languages, at every type.

        Others are what the standard type makes them: no text reached them.
        """
        reached = (
            name
            for name in self.every_type
            if all(s.has(name) for s in self.sensitivities.values())
        )
        return {
            name: {
                type_name: Candidate(
                    sizes.padded(option.size_bytes),
                    {
                        language: s.of(name, type_name).kld_nats_per_error * option.errors[language]
                        for language, s in self.sensitivities.items()
                    },
                )
                for type_name, option in self.every_type[name].items()
            }
            for name in reached
        }

    def predicted(self, types: Mapping[str, str]) -> dict[str, float]:
        """Return what a file with these types is predicted to lose, in nats a token."""
        return allocate.predicted(self.candidates, types)

    def _measured(
        self, first: Choice, goal: Goal, standard: Mapping[str, str]
    ) -> tuple[Choice, dict[str, float]]:
        """Return the better of a choice and of one by what each group adds in it, both measured.

        And what the standard type loses, measured too. On the text of the probes.
        """
        languages = [*self.weights, *(x for x in goal.limits_nats if x not in self.weights)]
        measured = {x: self._together(x, first.types, apart=True) for x in languages}
        factors = {x: measured[x].factors(self._by_group(x, first.types)) for x in languages}
        corrected = self._corrected(factors)
        limits = self._limits(self._predicted(corrected))
        choices, goal = [first], dataclasses.replace(goal, limits_nats=limits)
        with contextlib.suppress(UsageError):  # limits that only predictions kept
            choices.append(allocate.allocate(self._allowed(corrected, goal), goal))
        klds = [{x: measured[x].kld_nats for x in languages}]
        klds += [{x: self._kld(x, choice.types) for x in languages} for choice in choices[1:]]
        limits = self._limits(self._kld)

        def loss(kld: Mapping[str, float]) -> tuple[float, float]:
            """First how far limits are exceeded."""
            excess = max((kld[x] / nats for x, nats in limits.items()), default=0.0)
            parts = (w * kld[x] / goal.scale_nats.get(x, 1.0) for x, w in self.weights.items())
            return max(1.0, excess), sum(parts)

        best = min(range(len(choices)), key=lambda i: loss(klds[i]))
        told = {**choices[best].predicted_kld_nats, **klds[best]}
        mix = {x: self._kld(x, standard) for x in languages}
        of_standard = {**allocate.predicted(self.candidates, standard), **mix}
        return dataclasses.replace(choices[best], predicted_kld_nats=told), of_standard

    def _predicted(self, candidates: Candidates) -> Callable[[str, Mapping[str, str]], float]:
        return lambda language, types: allocate.predicted(candidates, types)[language]

    def _kld(self, language: str, types: Mapping[str, str]) -> float:
        """Return what tensors at these types lose together."""
        return self._together(language, {n: types[n] for n in self.candidates}, False).kld_nats

    def _together(self, language: str, types: Mapping[str, str], apart: bool) -> Together:
        if language not in self._probings:
            text, compute = self.texts[language], self.request.compute
            what = probes.probing(self.tools, self.model, text, compute, self.session)
            self._probings[language] = what
        what, measured = self._probings[language], self.sensitivities[language]
        return interactions.together(what, types, measured, self.session, apart)

    @cached_property
    def _probings(self) -> dict[str, probes.Probing]:
        return {}

    def _by_group(self, language: str, types: Mapping[str, str]) -> dict[str, float]:
        """Return what each group is predicted to lose."""
        nats: dict[str, float] = {}
        for name, type_name in types.items():
            group = self.sensitivities[language].group(name)
            kld = self.candidates[name][type_name].kld_nats[language]
            nats[group] = nats.get(group, 0.0) + kld
        return nats

    def _corrected(self, factors: Mapping[str, Mapping[str, float]]) -> Candidates:
        """Return the candidates with each group's nats so many times as large."""

        def nats(name: str, candidate: Candidate) -> dict[str, float]:
            return {
                x: kld * factors.get(x, {}).get(self.sensitivities[x].group(name), 1.0)
                for x, kld in candidate.kld_nats.items()
            }

        return {
            name: {t: Candidate(c.size_bytes, nats(name, c)) for t, c in options.items()}
            for name, options in self.candidates.items()
        }

    def _allowed(self, candidates: Candidates, goal: Goal) -> Candidates:
        """Return the candidates of the types allowed; as they are only where there is room."""

        def of(whole: bool) -> Candidates:
            return {
                name: {
                    t: c
                    for t, c in options.items()
                    if t in _offered(self._tensors[name], self.request, whole)
                }
                for name, options in candidates.items()
            }

        quantized = of(whole=False)
        return quantized if allocate.sizes(quantized, goal)[1] >= goal.size_bytes else of(True)

    def _limit_bytes(self, quant_type: str) -> int:
        if standard := size_types.standard(quant_type):
            return self._size_bytes(self.standard(standard), self.metadata)
        header = sizes.header_bytes(self.model, self.imatrix, self._metadata(quant_type))
        return size_types.n_bytes(quant_type, self.model.facts.n_parameters, header)

    def _nearest(self, limit_bytes: int) -> str:
        """Return the standard type nearest in size."""

        def distance(standard: str) -> int:
            return abs(self._size_bytes(self.standard(standard), self.metadata) - limit_bytes)

        return min(STANDARD, key=distance)

    def _limits(self, kld_nats: Callable[[str, Mapping[str, str]], float]) -> dict[str, float]:
        """Return what each language with a limit may lose, by what types lose in a language."""
        limits: dict[str, float] = {}
        for standard, named in self.request.choice.no_worse_than:
            types = self.standard(standard)
            for language in named:
                nats = kld_nats(language, types)
                limits[language] = min(nats, limits.get(language, nats))
        return limits

    def _size_bytes(
        self,
        types: Mapping[str, str],
        metadata: Mapping[str, Value],
        without: Collection[str] | None = None,
    ) -> int:
        """Return the size of a file; without the data of tensors that have no type here."""
        header = sizes.header_bytes(self.model, self.imatrix, metadata)
        fixed_bytes = sizes.fixed_bytes(self.model, header, without or set(types))
        sizes_bytes = (errors.size_bytes(self._tensors[n], t) for n, t in types.items())
        return fixed_bytes + sum(map(sizes.padded, sizes_bytes))


def measured(model: Model, session: Session) -> list[str]:
    """Return the languages whose sensitivities the store has for a model."""
    measured = set()
    for artifact in session.store.artifacts():
        inputs = artifact.manifest["inputs"]
        if artifact.manifest["kind"] == "sensitivity" and inputs["model_sha256"] == model.sha256:
            with contextlib.suppress(BadRecords):
                measured |= {sensitivity.read(f).language for f in artifact.path.glob(f"*{SUFFIX}")}
    return sorted(measured)


def told(quant_type: str, chosen: Chosen) -> str:
    """Return a choice in a sentence: its size, and what it is predicted to lose."""
    klds = (
        f"{language} {format.number(nats)} ({format.number(chosen.standard_kld_nats[language])})"
        for language, nats in chosen.predicted_kld_nats.items()
    )
    return (
        f"{quant_type}: {format.size(chosen.size_bytes)} of at most"
        f" {format.size(chosen.limit_bytes)}; predicted KLD in nats a token, and that of"
        f" {chosen.standard}: {', '.join(klds)}"
    )


def _digest(measured: Sensitivity) -> str:
    return hashlib.sha256(sensitivity.text(measured).encode()).hexdigest()
