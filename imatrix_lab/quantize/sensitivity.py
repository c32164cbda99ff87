"""How much a language's output suffers from errors in a group of tensors, and the file with that.

The divergence from the full model grows, for small errors, in proportion to the relative squared
error of the weights (Malinovskii et al. 2024, HIGGS, arXiv 2411.17525, theorem 1). So a coefficient
for each group of tensors, measured once by coarse quants of that group alone (`probes`), turns the
error of any choice of types (`errors`) into nats:

    KLD = sum over tensors of coefficient(group, type, language) x error(tensor, type, language)

Types are of two kinds: with a scale for each block, or with a scale and a minimum. An error of one
and the same size is of another nature in each: a scale alone is stretched by the largest weight of
its block, which often stands where activations are largest. So each group is probed with both.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from imatrix_lab.core.files import from_json, sealed_json, unsealed, write_whole
from imatrix_lab.core.outputs import Other, any_file
from imatrix_lab.errors import BadRecords, UsageError
from imatrix_lab.imatrix.format import layer_and_role
from imatrix_lab.stats import clustered
from imatrix_lab.types import Model

FORMAT = "imatrix-lab sensitivity"
VERSION = 2
"""Raise it when the same inputs give other numbers. 2: two kinds of types; outliers alone."""
SUFFIX = ".sensitivity.json"
BANDS_MIN, BAND_LAYERS = 3, 8
"""Bands of depth: three, or one for every eight layers of a deeper model."""

KINDS = {"scale": ("Q3_K", "IQ4_XS"), "scale and minimum": ("Q4_K", "Q5_K")}
"""Kinds of types: what a group is probed with, coarse first."""
_WITH_MINIMUM = frozenset(("Q2_K", "Q4_K", "Q5_K", "Q4_1", "Q5_1"))

OUTLYING = 1 / 3
"""A tensor is an outlier if its error is less than this share of the median of its role's."""


def kind_of(type_name: str) -> str:
    """Return the kind of a type."""
    return "scale and minimum" if type_name in _WITH_MINIMUM else "scale"


def n_bands(n_layers: int) -> int:
    """Return the number of bands of a model's depth."""
    return max(1, min(n_layers, max(BANDS_MIN, math.ceil(n_layers / BAND_LAYERS))))


def group_of(tensor_name: str, n_layers: int) -> str:
    """Return a tensor's group: ``attn_q.0`` (role and band) in a layer, else its own name."""
    layer, role = layer_and_role(tensor_name)
    if layer is None:
        return role
    band = min(layer * n_bands(n_layers) // max(1, n_layers), n_bands(n_layers) - 1)
    return f"{role}.{band}"


def alone_as(tensor_name: str) -> str:
    """Return the group of a tensor that is alone in it: ``blk.11.ffn_down``."""
    return tensor_name.removesuffix(".weight")


def outliers(errors: Mapping[str, float]) -> list[str]:
    """Return the tensors whose relative errors are of another nature than those of their role.

    Where massive activations arise (Sun et al. 2024, arXiv 2402.17762) one column at one token is
    nearly all of a squared output. What a type spoils elsewhere hardly adds to the relative error
    then, though it harms the model as it does in other layers.
    """
    by_role: dict[str, list[float]] = {}
    for name, error in errors.items():
        by_role.setdefault(layer_and_role(name)[1], []).append(error)
    medians = {role: float(np.median(of_role)) for role, of_role in by_role.items()}
    return [n for n, error in errors.items() if error < OUTLYING * medians[layer_and_role(n)[1]]]


@dataclass(frozen=True)
class Coefficient:
    """Nats a token that a language loses for each unit of relative squared error in a group.

    ci95_low, ci95_high : a cluster-robust t interval over the pieces of text; None for one piece.
    type : of the probe.
    error : the sum of its tensors' relative errors at that type.
    kld_nats : mean divergence of each piece of text, in the order of `Sensitivity.tokens`.
    """

    kld_nats_per_error: float
    ci95_low: float | None
    ci95_high: float | None
    n_tokens: int
    type: str
    error: float
    kld_nats: tuple[float, ...]


@dataclass(frozen=True)
class Sensitivity:
    """The coefficients of a language, by group and then by kind of type.

    A group is a role in a band of depth, or a tensor alone.
    tokens : scored tokens of each piece of text.
    signature : what they were measured with (toolchain, model, corpus, imatrix, probes).
    """

    language: str
    model_sha256: str
    n_layers: int
    tokens: tuple[int, ...]
    coefficients: Mapping[str, Mapping[str, Coefficient]]
    signature: Mapping[str, Any]

    def has(self, tensor_name: str) -> bool:
        """Return whether text reached a tensor."""
        return self._group(tensor_name) in self.coefficients

    def of(self, tensor_name: str, type_name: str) -> Coefficient:
        """Return a tensor's coefficient at a type; raises KeyError for one that no text reached."""
        return self.coefficients[self._group(tensor_name)][kind_of(type_name)]

    def _group(self, tensor_name: str) -> str:
        alone = alone_as(tensor_name)
        return alone if alone in self.coefficients else group_of(tensor_name, self.n_layers)

    def flat(self) -> dict[tuple[str, str], Coefficient]:
        """Return the coefficients by (group, kind)."""
        return {(g, k): c for g, kinds in self.coefficients.items() for k, c in kinds.items()}

    def sample(self, k: int, n_samples: int) -> "Sensitivity":
        """Return what the pieces of sample `k` (from 0) alone say; samples share no piece."""
        chosen = slice(k, None, n_samples)
        tokens = self.tokens[chosen]
        parts = {
            group: {
                kind: coefficient(c.type, c.error, c.kld_nats[chosen], tokens)
                for kind, c in kinds.items()
            }
            for group, kinds in self.coefficients.items()
        }
        more = {"sample": [k, n_samples]}
        values = self.language, self.model_sha256, self.n_layers, tokens, parts
        return Sensitivity(*values, {**self.signature, **more})


def coefficient(
    type_name: str, error: float, kld_nats: Iterable[float], tokens: Iterable[int]
) -> Coefficient:
    """Return the coefficient of a probe with that error and divergence on pieces of text."""
    means, sizes = np.array(list(kld_nats)), np.array(list(tokens), np.float64)
    mean = clustered.mean(means * sizes, sizes)
    low, high = (None if math.isnan(e) else max(0.0, e) / error for e in (mean.low, mean.high))
    value = max(0.0, mean.estimate) / error
    return Coefficient(value, low, high, mean.n, type_name, error, tuple(means.tolist()))


def ranking_agreement(sensitivity: Sensitivity) -> float:
    """Return Spearman's correlation of the coefficients of two halves of the text.

    NaN with fewer than three groups or two pieces.
    """
    if len(sensitivity.tokens) < 2:
        return math.nan
    return correlation(sensitivity.sample(0, 2), sensitivity.sample(1, 2))


def correlation(a: Sensitivity, b: Sensitivity) -> float:
    """Return Spearman's correlation of two languages' coefficients, where both have them."""
    from scipy import stats

    both = a.flat(), b.flat()
    groups = [key for key in both[0] if key in both[1]]
    if len(groups) < 3:
        return math.nan
    pairs = ([flat[key].kld_nats_per_error for key in groups] for flat in both)
    return float(stats.spearmanr(*pairs).statistic)


def write(path: Path, sensitivity: Sensitivity) -> None:
    """Write the JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text(sensitivity))


def text(sensitivity: Sensitivity) -> str:
    """Return the JSON of a file."""
    return sealed_json({"format": FORMAT, "version": VERSION, **asdict(sensitivity)})


def read(path: Path) -> Sensitivity:
    """Read a file of coefficients.

    Raises BadRecords: it is something else, damaged, of another version, or has impossible values.
    """
    fix = "imatrix-lab sensitivity build --model MODEL --text LANGUAGE, which makes it again"
    try:
        raw = from_json(path.read_bytes())
    except FileNotFoundError as error:
        raise BadRecords("no such file", where=path, fix="check the path") from error
    except OSError as error:
        raise BadRecords(f"cannot be read: {error.strerror or error}", where=path) from error
    except ValueError as error:
        raise BadRecords(
            "this is no file of sensitivities: no JSON", where=path, fix=fix
        ) from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise BadRecords("this is no file of sensitivities", where=path, fix=fix)
    if raw.get("version") != VERSION:
        what = f"version {raw.get('version')} of the file of sensitivities, not {VERSION}"
        raise BadRecords(what, where=path, fix=fix)
    try:
        return _checked(unsealed(raw))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"a damaged file of sensitivities: {error or type(error).__name__}"
        raise BadRecords(what, where=path, fix=fix) from error


def _checked(raw: Mapping[str, Any]) -> Sensitivity:
    if more := raw.keys() - {f.name for f in fields(Sensitivity)} - {"format", "version"}:
        raise ValueError(f"unknown key {min(more)!r}")
    tokens = tuple(int(n) for n in raw["tokens"])
    if not tokens or min(tokens) < 1 or not raw["coefficients"]:
        raise ValueError("it has no text or no groups")
    coefficients = {
        group: {kind: _read_again(group, kinds[kind], tokens) for kind in KINDS}
        for group, kinds in raw["coefficients"].items()
    }
    return Sensitivity(
        str(raw["language"]), str(raw["model_sha256"]), int(raw["n_layers"]), tokens,
        coefficients, dict(raw["signature"]),
    )  # fmt: skip


def _read_again(group: str, values: Mapping[str, Any], tokens: tuple[int, ...]) -> Coefficient:
    klds, error = tuple(float(v) for v in values["kld_nats"]), float(values["error"])
    if len(klds) != len(tokens) or not all(map(math.isfinite, (error, *klds))):
        raise ValueError(f"{group} has values that are missing or not finite")
    if error <= 0:
        raise ValueError(f"the probe of {group} has no error")
    read = coefficient(str(values["type"]), error, klds, tokens)
    stated = float(values["kld_nats_per_error"])
    if not math.isclose(stated, read.kld_nats_per_error, rel_tol=1e-6):
        raise ValueError(f"the coefficient of {group} is not that of its probe")
    return read


def require_model(sensitivities: Iterable[Sensitivity], model: Model) -> None:
    """Raise UsageError for coefficients of another model."""
    for sensitivity in sensitivities:
        if sensitivity.model_sha256 != model.sha256:
            what = f"the sensitivities of {sensitivity.language} are of another model"
            fix = "imatrix-lab sensitivity build --model MODEL --text LANGUAGE, with this model"
            raise UsageError(what, where=model.path, fix=fix)


def other_than(language: str, model_sha256: str) -> Other:
    """Return what tells a file of this language and model from others, for `outputs`."""

    def other(path: Path) -> str:
        try:
            existing = read(path)
        except BadRecords:
            return any_file(path)
        if (existing.language, existing.model_sha256) == (language, model_sha256):
            return ""
        return f"sensitivities of {existing.language}, of another model or language"

    return other
