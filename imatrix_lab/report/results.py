"""The results of a study: passed from studies to reports, and written as `results.json`.

Every number is in the unit of its row; a report does no arithmetic. What is unknown is NaN (null
in JSON). Only `Times` depends on the clock, the machine's speed or on interruptions.
"""

import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imatrix_lab.core import config
from imatrix_lab.core.files import from_json, sealed_json, unsealed, write_whole
from imatrix_lab.errors import UsageError

SCHEMA = 1
FILE = "results.json"
ALL_SAMPLES = 0
"""A row over all calibration samples; single samples are numbered from 1."""


@dataclass(frozen=True)
class Calibration:
    """An imatrix that was made, or the absence of one, and what it was computed on.

    `label` is as in other rows: ``nb``, ``nb50-en50``, ``nb-pooled``, ``no imatrix``. `kind`:
    language, mixture, pooled, control or none. `merged_from`: sha256 of a mixture's or pool's
    imatrices.
    """

    model: str
    label: str
    name: str
    kind: str
    sample: int
    shares: dict[str, float]
    n_tokens: int
    imatrix_sha256: str
    corpus_sha256: str
    source: str
    licence: str
    merged_from: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quant:
    """A quantized file.

    `type` names the quantizer too unless it is llama-quantize with the imatrix: ``Q4_K_M``,
    ``size:Q4_K_M`` (types chosen for that size), ``Q4_K_M+feedback``. Where it is the quantizer
    alone, weights are on a grid of its own, and the size is not that of a file for use.
    """

    model: str
    calibration: str
    sample: int
    type: str
    label: str
    sha256: str
    size_bytes: int
    bits_per_weight: float
    n_fallback: int
    quantizer: str = "imatrix"


@dataclass(frozen=True)
class Score:
    """One measure of a calibration and type on a text or task, with its 95 % interval.

    `text`: label of the text, or language of the task; `task` is empty for texts, `calibration` for
    the original. `metric` is a key (``kld_nats``, ``perplexity``, ``score`` …), `n` counts tokens
    in documents or items in groups, `signatures` are keys of `Results.signatures`.
    """

    model: str
    text: str
    task: str
    calibration: str
    sample: int
    type: str
    metric: str
    words: str
    unit: str
    estimate: float
    low: float
    high: float
    n: int
    n_clusters: int
    signatures: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Calibration A minus calibration B at one type, paired on the same text or items.

    The baseline is never `a`. `verdict`, of A: better, worse, equivalent or undecided. `margin`:
    the smallest difference declared to matter, or NaN. `noise`: root mean square difference of two
    samples of one language, or NaN; `noise_multiple`: |estimate| / noise. `detectable`: smallest
    difference seen with 80 % power. `n_to_decide` and `clusters_to_decide` are 0 where more would
    not decide.
    """

    model: str
    text: str
    task: str
    type: str
    metric: str
    words: str
    unit: str
    lower_is_better: bool
    a: str
    b: str
    estimate: float
    low: float
    high: float
    p_value: float
    p_adjusted: float
    adjust: str
    family: str
    n_family: int
    verdict: str
    margin: float
    p_equivalence: float
    detectable: float
    noise: float
    noise_multiple: float
    n: int
    n_clusters: int
    n_to_decide: int
    clusters_to_decide: int
    plain: str
    formal: str
    signatures: tuple[str, ...]


@dataclass(frozen=True)
class Interaction:
    """Does each of two languages gain more from its own calibration? See `interactions`."""

    model: str
    task: str
    type: str
    metric: str
    unit: str
    a: str
    b: str
    estimate: float
    low: float
    high: float
    p_value: float
    p_holm: float
    plain: str
    formal: str


@dataclass(frozen=True)
class Contrast(Comparison):
    """Type A minus type B with one calibration, on the same text or items, files of one size.

    `a` and `b` are types, and `type` is A's. B is llama-quantize's with the same imatrix, where it
    takes part.
    """

    calibration: str = ""


@dataclass(frozen=True)
class TypeInteraction:
    """Does the calibration change files of type A more than those of type B?

    (`calibration` - `reference`, of type A) - (the same of type B) on a text; both were made with
    the same imatrices. `text` empty: the mean over the `n_texts` texts of which there is a
    calibration, each with its own (`calibration` is empty). `type_b` empty: type A alone. `noise`:
    root mean square difference of two samples of one calibration at type A, or NaN.
    """

    model: str
    task: str
    text: str
    calibration: str
    reference: str
    type_a: str
    type_b: str
    metric: str
    unit: str
    n_texts: int
    estimate: float
    low: float
    high: float
    p_value: float
    p_holm: float
    noise: float
    plain: str
    formal: str


@dataclass(frozen=True)
class Control:
    """A comparison with a known outcome, or the noise between samples."""

    model: str
    name: str
    expected: str
    text: str
    task: str
    type: str
    metric: str
    unit: str
    estimate: float
    low: float
    high: float
    noise_multiple: float


@dataclass(frozen=True)
class Prediction:
    """Relative squared error of the layers' outputs, without inference; measured KLD, or NaN.

    `predicted_kld_nats`: from sensitivities of the language, where they were measured.
    """

    model: str
    calibration: str
    sample: int
    type: str
    language: str
    predicted_loss: float
    measured_kld_nats: float
    predicted_kld_nats: float = math.nan


@dataclass(frozen=True)
class Agreement:
    """How well predicted losses rank the calibrations of one type on one language.

    `type` empty: how well predicted divergences rank all files.
    """

    model: str
    type: str
    language: str
    spearman: float
    n: int


@dataclass(frozen=True)
class TensorTypes:
    """The types of a file's tensors: by role, of each layer ("" where it has none), or one.

    `bits`: of a weight in each of these types.
    """

    model: str
    calibration: str
    type: str
    roles: dict[str, tuple[str, ...]]
    bits: dict[str, float]


@dataclass(frozen=True)
class Activations:
    """What the matrices of a role read in a language, by layer: root mean squares of columns.

    `median`, `high` (99th percentile) and `largest` of a layer's columns; NaN where a layer has no
    such matrix. Of several samples the first. `role` names the first matrix that reads the input.
    """

    model: str
    calibration: str
    role: str
    median: tuple[float, ...]
    high: tuple[float, ...]
    largest: tuple[float, ...]


@dataclass(frozen=True)
class Similarity:
    """Total variation between imatrices' energies, 0 (same) to 1; `noise` of samples, or NaN."""

    model: str
    a: str
    b: str
    total_variation: float
    noise: float


@dataclass(frozen=True)
class Preference:
    """Votes of people on the answers of A and B to prompts in the language of `text`.

    `estimate`: A's share of wins less B's, in points. `n_identical` prompts were answered alike and
    count as ties of everyone. With fewer than three people it holds for these alone.
    """

    model: str
    text: str
    a: str
    b: str
    n_people: int
    n_prompts: int
    n_wins_a: int
    n_ties: int
    n_wins_b: int
    n_identical: int
    estimate: float
    low: float
    high: float
    p_value: float
    verdict: str
    plain: str


@dataclass(frozen=True)
class Flip:
    """An item that two calibrations answer differently; its texts may be hostile."""

    model: str
    task: str
    language: str
    type: str
    a: str
    b: str
    item_id: str
    prompt: str
    gold: str
    output_a: str
    output_b: str
    score_a: float
    score_b: float


@dataclass(frozen=True)
class FlipCount:
    """How many items two calibrations answer differently."""

    model: str
    task: str
    language: str
    type: str
    a: str
    b: str
    n_items: int
    n_gained: int
    n_lost: int


@dataclass(frozen=True)
class Missing:
    """A step that failed, and the steps that were skipped because of it."""

    step: str
    why: str
    fix: str
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Licence:
    """A model, text or task that the numbers come from, and its licence."""

    what: str
    licence: str
    source: str


@dataclass(frozen=True)
class Power:
    """What a comparison could detect with 80 % power, planned on what was `assumed`."""

    what: str
    unit: str
    detectable: float
    margin: float
    assumed: str


@dataclass(frozen=True)
class Times:
    """Seconds by step, of the run that did it."""

    steps_s: dict[str, float]
    total_s: float


@dataclass(frozen=True)
class Results:
    """Everything a report shows.

    `answer`: three sentences, for someone who wants to know which file to use. `baseline`: the
    calibration of the verdict matrix; `metric`: the one that decides texts (``kld_nats``).
    `languages`: code -> English name, direction (``ltr``, ``rtl``) and script (``Mlym``). `recipe`:
    as it was run, defaults filled in, files without folders. `unknown`: details that a paper does
    not give. `commands` repeat the study, in order; `notes` are what a reader must know in
    addition;
    `size_gaps`, before anything else, which of the compared files are not of one size; `refused`,
    which types were not compared because of that.
    """

    schema: int
    name: str
    question: str
    source: str
    answer: tuple[str, ...]
    baseline: str
    metric: str
    languages: dict[str, dict[str, str]]
    models: dict[str, dict[str, Any]]
    types: tuple[str, ...]
    calibrations: tuple[Calibration, ...]
    quants: tuple[Quant, ...]
    scores: tuple[Score, ...]
    comparisons: tuple[Comparison, ...]
    interactions: tuple[Interaction, ...]
    controls: tuple[Control, ...]
    predictions: tuple[Prediction, ...]
    agreements: tuple[Agreement, ...]
    similarities: tuple[Similarity, ...]
    flips: tuple[Flip, ...]
    flip_counts: tuple[FlipCount, ...]
    power: tuple[Power, ...]
    missing: tuple[Missing, ...]
    licences: tuple[Licence, ...]
    commands: tuple[str, ...]
    notes: tuple[str, ...]
    unknown: tuple[str, ...]
    reduced: bool
    recipe: dict[str, Any]
    signatures: dict[str, dict[str, Any]]
    times: Times
    size_gaps: tuple[str, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    refused: tuple[str, ...] = ()
    type_interactions: tuple[TypeInteraction, ...] = ()
    tensor_types: tuple[TensorTypes, ...] = ()
    activations: tuple[Activations, ...] = ()
    preferences: tuple[Preference, ...] = ()


def write(path: Path, results: Results) -> None:
    """Write results, whole or not at all; equal results give equal bytes."""
    write_whole(path, sealed_json(config.plain(results)))


def read(path: Path) -> Results:
    """Return the results in a file or in a study's folder; UsageError: there are none to read."""
    file = path / FILE if path.is_dir() else path
    try:
        raw = from_json(file.read_bytes())
        raw = unsealed(raw) if isinstance(raw, dict) else raw
    except OSError as error:
        fix = "imatrix-lab study run recipes/quick-nb.toml"
        raise UsageError(f"no results of a study: {error.strerror}", where=file, fix=fix) from error
    except ValueError as error:
        raise UsageError(f"damaged: {error}", where=file, fix=_again(file)) from error
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        raise UsageError(f"not results of schema {SCHEMA}", where=file, fix=_again(file))
    results = config.build(Results, raw, file)
    if wrong := _contradiction(results):
        raise UsageError(f"damaged: {wrong}", where=file, fix=_again(file))
    return results


def _contradiction(results: Results) -> str:
    """Return which row's parts do not belong together, or ""."""
    for i, a in enumerate(results.activations):
        if not len(a.median) == len(a.high) == len(a.largest):
            return f"activations[{i}]: median, high and largest are not of the same layers"
    for i, t in enumerate(results.tensor_types):
        names = {name for types in t.roles.values() for name in types if name}
        if not names or not names <= t.bits.keys():
            return f"tensor_types[{i}]: roles and bits are not of the same types"
    return ""


def _again(file: Path) -> str:
    """Return the command that writes a study's results anew, if this file is such."""
    if file.name != FILE:
        return f"give a study's folder, or the {FILE} in it"
    return f"imatrix-lab study resume {shlex.quote(str(file.parent))}"
