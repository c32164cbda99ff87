"""Places where channels can be scaled while a model computes what it did.

What makes a channel is divided by its scale, and the columns of every matrix that reads it are
multiplied by it (SmoothQuant, arXiv 2211.10438, 3; AWQ, arXiv 2306.00978, 3.2):

* a norm's weights and biases, and what reads the normalized input: q, k and v; gate and up, with
  router and experts; all of them where attention and FFN read one input;
* rows of attn_v, and attn_output: attention averages values, so a value's channel stays itself.
  Query heads of a group read one value head, and one scale;
* rows of ffn_up, and ffn_down: the product with a gate is linear in them. Without a gate only
  ReLU² lets a scale through, squared.

Which tensors read what is the graph of llama.cpp's ``src/models/``, read for `ARCHITECTURES`.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.errors import BadModel
from imatrix_lab.models import effective, weights
from imatrix_lab.models.gguf import GgufHeader, TensorInfo, read_header
from imatrix_lab.types import NOT_FOR_USE, Model

ARCHITECTURES = frozenset((
    "apertus", "arcee", "baichuan", "bailingmoe", "chatglm", "cohere2", "command-r", "deepseek",
    "dots1", "ernie4_5", "ernie4_5-moe", "exaone", "exaone4", "falcon", "gemma", "gemma2", "gemma3",
    "glm4", "glm4moe", "gpt-oss", "gpt2", "gptneox", "granite", "granitemoe", "internlm2", "llama",
    "minicpm", "mistral3", "nemotron", "olmo2", "olmoe", "orion", "phi2", "phi3", "phimoe", "qwen2",
    "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe", "seed_oss", "smollm3",
    "stablelm", "starcoder", "starcoder2", "xverse",
))  # fmt: skip
_FFN_NORM = dict.fromkeys(("glm4moe", "gpt-oss", "seed_oss"), "post_attention_norm")
_PARALLEL = frozenset(("cohere2", "command-r", "falcon", "phi2", "stablelm"))
"""Attention and FFN read one input, unless the layer has an ffn_norm."""
_GATE_IN_UP = frozenset(("chatglm", "glm4", "phi3"))
_SQUARED = frozenset(("arcee", "nemotron"))  # ReLU²
_CLAMPED = frozenset(("gpt-oss",))

SCALED = "imatrix_lab.awq"
"""In the metadata of a quant whose channels were scaled: its weights are not the model's."""

ATTENTION_READS = ("attn_q", "attn_k", "attn_v", "attn_qkv")
FFN_READS = (
    "ffn_gate", "ffn_up", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_gate_up_exps",
    "ffn_gate_inp_shexp", "ffn_gate_shexp", "ffn_up_shexp",
)  # fmt: skip
ROWS_UNDONE_BY = {"attn_output": "attn_v", "ffn_down": "ffn_up"}
_KNOWN = {
    *ATTENTION_READS, *FFN_READS, *ROWS_UNDONE_BY, "ffn_down_exps", "ffn_down_shexp",
    "attn_norm", "attn_norm_2", "attn_q_norm", "attn_k_norm", "post_attention_norm",
    "ffn_norm", "post_ffw_norm", "attn_sinks", "exp_probs_b", "attn_rot_embd",
}  # fmt: skip
_NUMBERS = {"F32", "F16", "BF16"}


class Maker(NamedTuple):
    """A tensor that makes channels: its rows from `first` on, or elements if it is a vector."""

    name: str
    first: int = 0
    is_vector: bool = False


@dataclass(frozen=True)
class Pair:
    """Channels, between what makes them and the matrices that read them.

    `n_sets`: each of so many experts has channels of its own; else 1. Value heads of `head`
    channels are read by `group` query heads each. What is made grows with the power `degree`.
    """

    makers: tuple[Maker, ...]
    readers: tuple[str, ...]
    n_channels: int
    n_sets: int = 1
    head: int = 0
    group: int = 1
    degree: int = 1

    @property
    def name(self) -> str:
        """The name of the tensor that makes the channels."""
        return self.makers[0].name

    def columns(self, scales: NDArray[Any]) -> NDArray[Any]:
        """Return scales of channels (sets, channels) for the readers' columns (sets, columns)."""
        if self.group == 1:
            return scales
        heads = scales.reshape(len(scales), -1, 1, self.head)
        return heads.repeat(self.group, axis=2).reshape(len(scales), -1)

    def channels(self, sums: NDArray[Any]) -> NDArray[Any]:
        """Return what columns (sets, columns) sum to for channels (sets, channels)."""
        if self.group == 1:
            return sums
        heads = sums.reshape(len(sums), -1, self.group, self.head)
        return np.asarray(heads.sum(axis=2).reshape(len(sums), -1))


@dataclass(frozen=True)
class Places:
    """The pairs of a model; and why channels of other tensors stay as they are, by name."""

    pairs: tuple[Pair, ...]
    skipped: Mapping[str, str]


def places(model: Model) -> Places:
    """Return where a model's channels can be scaled.

    Raises BadModel for an architecture whose graph is not known here.
    """
    check(model)
    header = read_header(model.path)
    values = effective.hyperparameters(header)
    layers: dict[str, dict[str, TensorInfo]] = defaultdict(dict)
    n_run = model.facts.n_layers - model.facts.n_mtp_layers
    for name, tensor in weights.tensors(model).items():
        if (match := re.match(r"blk\.(\d+)\.", name)) and int(match[1]) < n_run:
            layers[match[0]][name.removeprefix(match[0])] = tensor.info
    pairs, skipped = list[Pair](), dict[str, str]()
    for prefix, tensors in layers.items():
        if odd := [n for n in tensors if n.rpartition(".")[0] not in _KNOWN]:
            skipped[f"{prefix}*"] = f"{odd[0]} is not known in this architecture"
            continue
        layer = _Layer(model.facts.architecture, prefix, tensors, values.get(_HEAD), skipped)
        for pair in (*layer.norms(), *layer.values(), *layer.ffn()):
            names = [*(m.name for m in pair.makers), *pair.readers]
            types = {tensors[n.removeprefix(prefix)].type_name for n in names}
            if types <= _NUMBERS:
                pairs.append(pair)
            else:
                skipped[pair.name] = "quantized already"
    return Places(tuple(pairs), skipped)


def is_scaled(header: GgufHeader) -> bool:
    """Return whether the channels of a quant of ours were scaled."""
    return SCALED in header.metadata or header.text("imatrix_lab.int4") == NOT_FOR_USE[1]


def check(model: Model) -> None:
    """Raise BadModel for an architecture whose graph is not known here."""
    if (architecture := model.facts.architecture) not in ARCHITECTURES:
        what = f"where channels of {architecture} can be scaled is not known"
        raise BadModel(what, where=model.path, fix="leave --awq (AWQ=1) out")


_HEAD = "attention.value_length"


@dataclass(frozen=True)
class _Layer:
    """A layer's tensors by their names without its prefix."""

    architecture: str
    prefix: str
    tensors: Mapping[str, TensorInfo]
    head: Any
    skipped: dict[str, str]

    def norms(self) -> Iterator[Pair]:
        ffn_norm = _FFN_NORM.get(self.architecture, "ffn_norm")
        attention_norm, ffn = "attn_norm", FFN_READS
        if self._has("attn_norm_2"):  # of Falcon
            attention_norm, ffn_norm = "attn_norm_2", "attn_norm"
        if self._has(ffn_norm) or self.architecture not in _PARALLEL:
            yield from self._norm(attention_norm, ATTENTION_READS)
            yield from self._norm(ffn_norm, ffn)
        else:
            yield from self._norm(attention_norm, (*ATTENTION_READS, *ffn))

    def _norm(self, norm: str, roles: Sequence[str]) -> Iterator[Pair]:
        readers = [r for r in roles if self._has(r)]
        if not self._has(norm):
            for role in readers:
                self._skip(role, "its input is not normalized by weights")
        elif readers:
            makers = self._makers(norm, is_vector=True)
            names = tuple(self._name(r) for r in readers)
            yield Pair(makers, names, self._info(norm).shape[0])

    def values(self) -> Iterator[Pair]:
        value = next((r for r in ("attn_v", "attn_qkv") if self._has(r)), "")
        if not (value and self._has("attn_output")):
            return
        n_read, n_rows = self._info("attn_output").shape[0], self._info(value).shape[1]
        head = self.head if isinstance(self.head, int) and self.head > 0 else 0
        n_values = n_rows
        if value == "attn_qkv":  # rows of q, as many as attn_output reads, then of k, then of v
            n_values = (n_rows - n_read) // 2
        if not head or n_values <= 0 or n_values % head or n_read % n_values:
            self._skip(value, "value heads of this size are not known")
            return
        first = n_rows - n_values
        makers = self._makers(value, first)
        if self._has("attn_v", "bias") and value != "attn_v":
            makers = (*makers, Maker(self._name("attn_v", "bias"), is_vector=True))
        group = n_read // n_values
        yield Pair(makers, (self._name("attn_output"),), n_values, head=head, group=group)

    def ffn(self) -> Iterator[Pair]:
        for kind in ("", "_exps", "_shexp"):
            up, gate, down = (f"ffn_{role}{kind}" for role in ("up", "gate", "down"))
            is_joint = self._has(f"ffn_gate_up{kind}")
            up = f"ffn_gate_up{kind}" if is_joint else up
            if not (self._has(up) and self._has(down)):
                continue
            n_channels, n_rows = self._info(down).shape[0], self._info(up).shape[1]
            is_joint = is_joint or (not self._has(gate) and self.architecture in _GATE_IN_UP)
            first, degree = (n_channels if is_joint else 0), 1
            if self.architecture in _CLAMPED:
                self._skip(up, "what it makes is clamped")
                continue
            if not (is_joint or self._has(gate)):
                if self.architecture not in _SQUARED:
                    self._skip(up, "its activation changes with the scale")
                    continue
                degree = 2
            if n_rows != first + n_channels:
                self._skip(up, f"{n_rows} rows for {n_channels} columns of {down}")
                continue
            n_sets = self._info(down).shape[2] if len(self._info(down).shape) > 2 else 1
            makers = self._makers(up, first)
            yield Pair(makers, (self._name(down),), n_channels, n_sets, degree=degree)

    def _has(self, role: str, kind: str = "weight") -> bool:
        return f"{role}.{kind}" in self.tensors

    def _info(self, role: str) -> TensorInfo:
        return self.tensors[f"{role}.weight"]

    def _name(self, role: str, kind: str = "weight") -> str:
        return f"{self.prefix}{role}.{kind}"

    def _makers(self, role: str, first: int = 0, is_vector: bool = False) -> tuple[Maker, ...]:
        makers = [Maker(self._name(role), first, is_vector)]
        if self._has(role, "bias"):
            makers.append(Maker(self._name(role, "bias"), first, is_vector=True))
        return tuple(makers)

    def _skip(self, role: str, why: str) -> None:
        self.skipped[self._name(role)] = why


@dataclass(frozen=True)
class Factors:
    """What a tensor is multiplied by: columns (1 or sets, columns), rows (sets, rows), or None.

    Vectors have columns only: one row, or one for each expert.
    """

    columns: NDArray[np.float32] | None = None
    rows: NDArray[np.float32] | None = None

    def apply(self, values: NDArray[np.float32], first: int, n_rows: int) -> NDArray[np.float32]:
        """Return rows (rows, columns) of a tensor scaled; `first` counts over all its `n_rows`."""
        numbers = first + np.arange(len(values))
        if self.columns is not None:
            values = values * self.columns[numbers // (n_rows // len(self.columns))]
        if self.rows is not None:
            values = values * self.rows.reshape(-1)[numbers, None]
        return values


def factors(
    scales: Mapping[Pair, NDArray[np.float64]], infos: Mapping[str, TensorInfo]
) -> dict[str, Factors]:
    """Return what each tensor is multiplied by, for scales of pairs (sets, channels)."""
    columns, rows = dict[str, NDArray[Any]](), dict[str, NDArray[Any]]()
    for pair, scale in scales.items():
        for name in pair.readers:
            columns[name] = pair.columns(scale)
        for name, first, is_vector in pair.makers:
            shape = infos[name].shape
            n = shape[0] if is_vector else shape[1]
            whole = np.ones((pair.n_sets, n))
            whole[:, first : first + pair.n_channels] = scale ** (-1 / pair.degree)
            (columns if is_vector else rows)[name] = whole

    def of(kind: Mapping[str, NDArray[Any]], name: str) -> NDArray[np.float32] | None:
        return kind[name].astype(np.float32) if name in kind else None

    return {name: Factors(of(columns, name), of(rows, name)) for name in columns | rows}
