"""What every tensor of a model would lose at every type, without making a file.

For a language with mean squared activations s[c] at input column c, weights w and quantized q,

    error = sum_rc s[c] (w - q)²[r, c] / sum_rc s[c] w²[r, c]

is the share of the tensor's squared output that is lost, as in `imatrix.predict`; experts count as
often as the language's tokens reach them. The sums over rows are kept in the store for each type
(`error_sums`): any language's error is arithmetic.

Embeddings and heads have a row for each token, and most imatrices have no importance for them:

- their rows count as often as a language's tokens: by the counts in its calibration text, of which
  the tokens seen once tell how much of other text is tokens not seen at all (Good 1953);
- as an embedding, columns count equally: a row is what the model reads. As a head, columns count by
  the activations after the final norm where the language's imatrix has them (``--process-output``),
  else equally. A tensor that is both has the mean of both errors.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.core.session import Session
from imatrix_lab.errors import BadModel, UsageError
from imatrix_lab.imatrix import format, quant_error
from imatrix_lab.imatrix.format import Imatrix, rounded
from imatrix_lab.llamacpp import ggml
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models import weights
from imatrix_lab.models.gguf import TensorInfo
from imatrix_lab.quantize import error_sums
from imatrix_lab.quantize.error_sums import Part, Search
from imatrix_lab.types import ImatrixFacts, Model

VERSION = [1, error_sums.VERSION]
"""Of the errors, and of the sums they are made of: raise one when the same files give others."""

EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
HEAD = "output.weight"
NEED_IMPORTANCE = frozenset(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"))
"""Not offered for tensors without importance: llama-quantize refuses them, or they are poor."""
PUBLISHED = frozenset(("MXFP4", "NVFP4"))
"""Types that models are published in: such tensors stay as they are."""
LEGACY = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")
"""Also offered where rows are not whole blocks of 256."""
_FALLBACKS = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S"), "IQ4_NL"),
    **dict.fromkeys(("IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    **{"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"},
}


@dataclass(frozen=True)
class Option:
    """A tensor at a type: its bytes, and by language the share of its squared output lost."""

    size_bytes: int
    errors: Mapping[str, float]


Options = Mapping[str, Mapping[str, Option]]
"""By tensor, then by type; the tensor's own type, at which nothing is lost, comes first."""


@dataclass(frozen=True)
class Language:
    """What a language asks of a model: its importance matrix, and how often its tokens occur.

    `token_counts` (ids,) are those of its calibration text; None: all tokens count the same.
    """

    imatrix: Imatrix
    token_counts: NDArray[np.int64] | None = None


def importance_of(
    imatrix: Imatrix | None, name: str, info: TensorInfo
) -> NDArray[np.float32] | None:
    """Return the importance llama-quantize takes for a tensor, shape (matrices, columns).

    Mean squares; 1 for an expert without tokens (``load_imatrix`` in quantize.cpp). None: it has
    none for the tensor.
    """
    entry = imatrix.entries.get(name) if imatrix else None
    shape = (math.prod(info.shape[2:]), info.shape[0])
    if entry is None or entry.sums.size != math.prod(shape):
        return None
    counts = rounded(entry.counts).astype(np.float32)[:, None]
    sums = entry.sums.astype(np.float32)
    means = np.ones_like(sums)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means.reshape(shape)


def fallback(type_name: str, n_columns: int) -> str:
    """Return the type that llama-quantize takes for rows of so many weights.

    The type itself where rows are whole blocks of it (``tensor_type_fallback`` in llama-quant.cpp).
    """
    for taken in (type_name, _FALLBACKS.get(type_name, type_name)):
        if n_columns % ggml.TYPES[taken].block == 0:
            return taken
    return "F16"


def candidates(info: TensorInfo, types: Sequence[str], important: bool) -> tuple[str, ...]:
    """Return the types that are offered for a tensor, its own first."""
    if info.type_name in PUBLISHED:
        return (info.type_name,)
    taken = [fallback(t, info.shape[0]) for t in types]
    if taken != list(types):
        taken += [fallback(t, info.shape[0]) for t in LEGACY]
    offered = [t for t in taken if important or t not in NEED_IMPORTANCE]
    return tuple(dict.fromkeys((info.type_name, *offered)))


def size_bytes(info: TensorInfo, type_name: str) -> int:
    """Return the bytes of a tensor at a type."""
    return weights.n_rows(info) * ggml.row_bytes(type_name, info.shape[0])


def frequencies(token_counts: NDArray[np.int64] | None, n_rows: int) -> NDArray[np.float64]:
    """Return how often each token is expected in other text than the one counted; the sum is 1.

    Tokens seen once are as frequent as all tokens not seen, together (I. J. Good, The population
    frequencies of species, Biometrika 40, 1953); each of those counts the same.
    """
    counts = np.zeros(n_rows)
    if token_counts is not None:
        counts[: len(token_counts)] = token_counts[:n_rows]
    n_tokens, unseen = counts.sum(), counts == 0
    if not n_tokens or not unseen.any():
        return np.asarray((counts + (n_tokens == 0)) / (n_tokens or n_rows))
    missing = np.count_nonzero(counts == 1) / n_tokens
    return np.asarray(counts * (1 - missing) / n_tokens + unseen * (missing / unseen.sum()))


def options(
    tools: Toolchain,
    model: Model,
    imatrix: ImatrixFacts | None,
    types: Sequence[str],
    languages: Mapping[str, Language],
    session: Session,
    threads: int,
) -> Options:
    """Return every quantizable tensor at every type that it can take.

    What is computed is kept in the store, for each (model, imatrix, type): a run that was stopped
    goes on at the type it was at.

    Parameters
    ----------
    imatrix : what the file will be quantized with, or None.
    types : names of ggml's types (``Q4_K``); where rows are not whole blocks of one, the type that
        llama-quantize would fall back to is offered.
    languages : whose errors are wanted, by name.

    Raises UsageError for an unknown type; BadModel for weights that are no numbers, or that this
    llama.cpp cannot read.
    """
    for type_name in types:
        if type_name not in ggml.OF_WEIGHTS:
            fix = "one of: Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_0, IQ4_XS"
            raise UsageError(f"{type_name} is not a type of weights", fix=fix)
    search = _search(tools, model, imatrix, session, threads)
    offered = {
        name: candidates(tensor.info, types, search.importance[name] is not None)
        for name, tensor in search.tensors.items()
    }
    errors = {label: _errors(search, known, offered) for label, known in languages.items()}
    return {
        name: {
            t: Option(
                size_bytes(search.tensors[name].info, t),
                {label: by_tensor.get((name, t), 0.0) for label, by_tensor in errors.items()},
            )
            for t in offered[name]
        }
        for name in offered
    }


def _search(
    tools: Toolchain, model: Model, imatrix: ImatrixFacts | None, session: Session, threads: int
) -> Search:
    known = format.read(imatrix.path) if imatrix else None
    library, tensors = ggml.load(tools), quant_error.tensors(model)
    for name, (path, info) in tensors.items():
        if info.type_name not in library.conversions:
            raise BadModel(f"{name} is {info.type_name}: not weights", where=path)
    return Search(
        ggml=library,
        model=model,
        imatrix=imatrix,
        tensors=tensors,
        importance={n: importance_of(known, n, t.info) for n, t in tensors.items()},
        squares={n: _squares(known, n, t.info) for n, t in tensors.items()},
        toolchain=tools.signature(),
        session=session,
        threads=threads,
    )


def _errors(
    search: Search, language: Language, offered: Mapping[str, Sequence[str]]
) -> dict[tuple[str, str], float]:
    """Return a language's error by tensor and type, but for the tensors' own types."""
    errors = {}
    for part in _parts(search, language):
        for type_name in dict.fromkeys(t for n in part.names for t in offered[n][1:]):
            names = [n for n in part.names if type_name in offered[n][1:]]
            for name, lost in part.lost(type_name, names).items():
                power = part.sampled.power[name]
                shares = [
                    _share(lost, power, s) for s in _activations(search, language.imatrix, name)
                ]
                errors[name, type_name] = sum(shares) / len(shares)
    return errors


def _parts(search: Search, language: Language) -> Iterator[Part]:
    """Yield the tensors whose rows all count the same, and those with a row for each token."""
    by_token = [n for n in search.tensors if n in (*EMBEDDINGS, HEAD)]
    yield Part(search, "layers", [n for n in search.tensors if n not in by_token], None)
    if by_token:
        n_rows = max(search.tensors[n].info.shape[1] for n in by_token)
        yield Part(search, "tokens", by_token, frequencies(language.token_counts, n_rows))


def _activations(search: Search, imatrix: Imatrix, name: str) -> list[NDArray[Any]]:
    """Return the squared activations that a tensor meets, for each role that it has."""
    even = np.ones(search.shape(name), np.float32)
    squares = _squares(imatrix, name, search.tensors[name].info)
    product = even if squares is None else squares
    if name not in EMBEDDINGS:
        return [product]
    is_head = name == EMBEDDINGS[0] and HEAD not in search.tensors
    return [even, product] if is_head else [even]


def _squares(imatrix: Imatrix | None, name: str, info: TensorInfo) -> NDArray[np.float32] | None:
    """Return sums of squared activations for a tensor (matrices, columns), if there are any."""
    entry = imatrix.entries.get(name) if imatrix else None
    shape = (math.prod(info.shape[2:]), info.shape[0])
    if entry is None or entry.sums.size != math.prod(shape):
        return None
    return entry.split(shape[0]).sums.reshape(shape).astype(np.float32)


def _share(lost: NDArray[Any], power: NDArray[Any], squares: NDArray[Any]) -> float:
    """Return the share of a squared output that is lost; 0 where there is none."""
    both = [np.vdot(np.asarray(squares, np.float64), sums) for sums in (lost, power)]
    return float(both[0] / both[1]) if both[1] else 0.0
