"""A study's TOML -> frozen dataclasses, which are its only definition."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imatrix_lab import typed
from imatrix_lab.errors import UsageError

SCHEMA = 1
NONE = "none"
DEMO = "demo"
REDUCED = "reduced"


def _said(doc: str, default: Any = None, factory: Any = None) -> Any:
    """Return a field with its line in the reference; without a default it must be given."""
    given = {"default_factory": factory} if factory else {"default": default}
    return field(metadata={"doc": doc}, **given)


def _needed(doc: str) -> Any:
    return field(metadata={"doc": doc})


@dataclass(frozen=True)
class Calibration:
    """What imatrices are computed on."""

    texts: tuple[str, ...] = _needed(
        "languages (nb), mixtures of them (nb=0.5,en=0.5; merged from the languages' imatrices),"
        " controls (shuffled:nb, random-tokens), and none for quants without an imatrix"
    )
    tokens: int = _said("tokens of each sample, in the model's vocabulary", 65_536)
    samples: int = _said("disjoint samples of each language: their differences are the noise", 1)
    pooled: bool = _said("also the samples of each language merged into one", False)
    merge_by: str = _said("how mixtures weigh: energy or tokens", "energy")


@dataclass(frozen=True)
class Evaluation:
    """The held-out text on which quants are compared with the original."""

    texts: tuple[str, ...] = _needed("languages, whose held-out text is meant, or NAME=FILE")
    documents: int = _said("only the first so many documents of each; 0: all", 0)
    protocol: str = _said("document or llamacpp", "document")
    ctx: int = _said("tokens in a window; 0 chooses by protocol", 0)


@dataclass(frozen=True)
class Task:
    """A benchmark; see imatrix-lab task list."""

    name: str = _needed("a task's name, or a TOML file of your own")
    languages: tuple[str, ...] = _said("codes; empty: every language of the calibration", ())
    limit: int = _said("items of each language; 0: all", 0)
    data: str = _said("a local file or folder in place of the Hub, from the recipe's folder", "")
    variant: str = _said("how options are scored; empty: the task's own way", "")


@dataclass(frozen=True)
class Comparison:
    """What is compared, decided before the data are seen."""

    family: str = _said("what is adjusted for together: calib, calibxlang, calibxlangxtype", "calibxlangxtype")
    baseline: str = _said("compare every calibration with this one only; empty: all pairs", "")
    adjust: str = _said("holm, max-t, bh or none", "holm")
    margins: dict[str, float] = _said("smallest difference that matters, by metric; score in points", factory=dict)
    metrics: tuple[str, ...] = _said("of texts; the first one decides", ("kld_nats", "nll_nats"))
    resamples: int = _said("of documents, for bootstrap and permutation", 10_000)


@dataclass(frozen=True)
class Limits:
    """What the study may use of this machine."""

    jobs: int = _said("steps at a time; 0: as cores and memory allow", 0)
    threads: int = _said("of a step; 0: chosen by jobs", 0)
    memory_gib: float = _said("0: four fifths of the machine's", 0.0)
    disk_gib: float = _said("for quants that wait to be scored, with keep = scores; 0: no limit", 0.0)
    backend: str = _said("cpu, cuda, metal or vulkan; empty: this machine's", "")
    gpu_layers: int = _said("layers on the GPU; -1 chooses", -1)


@dataclass(frozen=True)
class Recipe:
    """A study.

    Attributes
    ----------
    is_reduced : the [reduced] tables replaced others, because the model is the demo model.
    """

    schema: int = _needed("version of this format")
    name: str = _needed("of the study's folder")
    types: tuple[str, ...] = _needed("quant types: Q4_K_M …")
    calibration: Calibration = _needed("what imatrices are computed on")
    evaluation: Evaluation = _needed("held-out text")
    models: tuple[str, ...] = _said("demo, a GGUF file, or hf:org/repo[@rev][:file]", (DEMO,))
    question: str = _said("in a sentence", "")
    source: str = _said("the paper it follows", "")
    unknown: tuple[str, ...] = _said("details of the paper that it does not give", ())
    tasks: tuple[Task, ...] = _said("benchmarks", ())
    comparison: Comparison = _said("what is compared", factory=Comparison)
    limits: Limits = _said("what may be used of this machine", factory=Limits)
    seed: int = _said("of every draw", 1)
    keep: str = _said("all, or scores: quants are removed once they are scored", "all")
    is_reduced: bool = field(default=False, init=False)


def load(path: Path) -> Recipe:
    """Return a recipe.

    Raises
    ------
    UsageError : unreadable, an unknown key, or values that cannot be meant.
    """
    raise NotImplementedError
