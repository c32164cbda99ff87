"""How much a language's output suffers from errors in a group of tensors, and the file with that.

The divergence from the full model grows, for small errors, in proportion to the relative squared
error of the weights (Malinovskii et al. 2024, HIGGS, arXiv 2411.17525, theorem 1). So a coefficient
for each group of tensors, measured once by coarse quants of that group alone (`probes`), turns the
error of any choice of types (`errors`) into nats:

    KLD = sum over tensors of coefficient(group, language) x error(tensor, type, language)
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
VERSION = 1
"""Raise it when the same inputs give other numbers. 1: first files."""
SUFFIX = ".sensitivity.json"
BANDS_MIN, BAND_LAYERS = 3, 8
"""Bands of depth: three, or one for every eight layers of a deeper model."""


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
    """The coefficients of a language, by group.

    tokens : scored tokens of each piece of text.
    signature : what they were measured with (toolchain, model, corpus, imatrix, probes).
    """

    language: str
    model_sha256: str
    n_layers: int
    tokens: tuple[int, ...]
    coefficients: Mapping[str, Coefficient]
    signature: Mapping[str, Any]

    def of(self, tensor_name: str) -> Coefficient:
        """Return a tensor's coefficient; raises KeyError for one that no text reached."""
        return self.coefficients[group_of(tensor_name, self.n_layers)]

    def sample(self, k: int, n_samples: int) -> "Sensitivity":
        """Return what the pieces of sample `k` (from 0) alone say; samples share no piece."""
        chosen = slice(k, None, n_samples)
        tokens = self.tokens[chosen]
        parts = {
            group: coefficient(c.type, c.error, c.kld_nats[chosen], tokens)
            for group, c in self.coefficients.items()
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
    """Return Spearman's correlation of two languages' coefficients over the groups of both."""
    from scipy import stats

    groups = [g for g in a.coefficients if g in b.coefficients]
    if len(groups) < 3:
        return math.nan
    pairs = ([s.coefficients[g].kld_nats_per_error for g in groups] for s in (a, b))
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
    coefficients = {}
    for group, values in raw["coefficients"].items():
        klds, error = tuple(float(v) for v in values["kld_nats"]), float(values["error"])
        if len(klds) != len(tokens) or not all(map(math.isfinite, (error, *klds))):
            raise ValueError(f"{group} has values that are missing or not finite")
        if error <= 0:
            raise ValueError(f"the probe of {group} has no error")
        read_again = coefficient(str(values["type"]), error, klds, tokens)
        stated = float(values["kld_nats_per_error"])
        if not math.isclose(stated, read_again.kld_nats_per_error, rel_tol=1e-6):
            raise ValueError(f"the coefficient of {group} is not that of its probe")
        coefficients[group] = read_again
    return Sensitivity(
        str(raw["language"]), str(raw["model_sha256"]), int(raw["n_layers"]), tokens,
        coefficients, dict(raw["signature"]),
    )  # fmt: skip


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
