"""What passes between stages, and from stages to the command line."""

from dataclasses import dataclass, field
from pathlib import Path

TOKENS_DEFAULT = 65_536
"""Calibration text, in tokens of the model: practice in the field is 60k to 130k."""


Part = tuple[int, int]
"""``(i, n)``: of several things every n-th, from the i-th on."""


@dataclass(frozen=True)
class Condition:
    """What llama.cpp makes of a model, known from its header; `stops`: it cannot run it as text."""

    what: str
    fix: str
    stops: bool = True

    def __str__(self) -> str:
        return self.what + (f"\n  try: {self.fix}" if self.fix else "")


@dataclass(frozen=True)
class ModelFacts:
    """What the headers of a GGUF model say.

    `channels` is the embedding length. `fallback`: tensors whose rows are not a multiple of 256,
    for which llama-quantize falls back to a 32-wide type. Only a quant has an imatrix and a
    calibration. `adds_end`: llama.cpp would end every text with an end token.
    `n_mtp_layers` predict several tokens, and see no text.
    """

    architecture: str
    name: str
    license: str
    n_parameters: int
    n_layers: int
    channels: int
    n_vocab: int
    n_ctx_train: int
    n_experts: int
    file_type: str
    size_bytes: int
    bits_per_weight: float
    tensor_types: dict[str, int]
    fallback: tuple[str, ...]
    imatrix_sha256: str = ""
    calibration: str = ""
    adds_end: bool = False
    n_mtp_layers: int = 0
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True)
class Model:
    """A model on this disk.

    `path` is the file for llama.cpp (the first shard of a split model), `sha256` that of the file
    or of the shards' joined sha256. `origin` is the name to fetch it again, no path of this
    machine; `base_model` the original's Hub repository; `notice` licence files that must accompany
    quants.
    """

    label: str
    path: Path
    shards: tuple[Path, ...]
    sha256: str
    facts: ModelFacts
    origin: str
    base_model: str = ""
    notice: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Document:
    """One text with its origin and licence."""

    id: str
    text: str
    source: str
    licence: str


@dataclass(frozen=True)
class TextOptions:
    """How a corpus is built, apart from its language and budget; what is empty is chosen.

    `sources` and `heldout` name sources, `licence` the most restrictive class allowed. `sample` of
    `n_samples` disjoint calibration samples counts from 1. `chat` is the share of tokens in chats,
    in the model's template. No text of the evaluation sets `exclude` gets into the calibration
    text. `workers` does not change the result. `renew` chooses the sources again.
    """

    sources: tuple[str, ...] = ()
    heldout: str = ""
    licence: str = ""
    seed: int = 0
    sample: int = 1
    n_samples: int = 1
    chat: float = 0.0
    exclude: tuple[Path, ...] = ()
    workers: int = 1
    renew: bool = False


UNKNOWN_LICENCE = "unknown"
"""Of a text in a user's file."""


@dataclass(frozen=True)
class CorpusFacts:
    """A corpus on this disk, as its manifest describes it.

    Tokens are in the model's vocabulary, BOS included; `sha256` is of calibration.txt. `sample` is
    ``2/5`` for the second of five, empty for the only one. `parse_special`: it has chat tokens,
    which llama-imatrix must parse. `document_ends` are where its documents end, in bytes.
    `text_sha256` stands for the whole text of a user's file, as it does for held-out text.
    """

    language: str
    language_name: str
    calibration: Path
    heldout: Path
    n_tokens: int
    n_documents: int
    n_heldout: int
    n_heldout_tokens: int
    sha256: str
    heldout_sha256: str
    licence: str
    source: str
    sample: str = ""
    parse_special: bool = False
    document_ends: tuple[int, ...] = field(default=(), repr=False)
    text_sha256: str = ""


@dataclass(frozen=True)
class ImatrixFacts:
    """A checked importance matrix on this disk.

    `n_tokens` in all and `n_ctx` in a window are 0 if unknown, as from a ``.dat``. `unhit_experts`
    counts (tensor, expert) pairs without a token. `forced`: the errors that the user ignored.
    `language` is a label: a language or mixture, or the name of a text; if the file records none,
    that of the file, which is then in `unnamed`. Of a user's own file what it records of its
    texts is here too: `datasets`, their `licence`, `corpus_sha256`, and the `text_sha256s` that
    stand for files of text.
    """

    path: Path
    sha256: str
    language: str
    n_tensors: int
    n_tokens: int
    n_chunks: int
    n_ctx: int
    unhit_experts: int
    forced: str = ""
    unnamed: str = ""
    datasets: tuple[str, ...] = ()
    licence: str = ""
    corpus_sha256: str = ""
    text_sha256s: tuple[str, ...] = ()

    def is_of_text(self, sha256: str) -> bool | None:
        """Return whether it was computed from a text with this sha256; None if it does not say."""
        if sha256 in {self.corpus_sha256, *self.text_sha256s}:
            return True
        is_known = self.text_sha256s or self.licence not in ("", UNKNOWN_LICENCE)
        return False if self.corpus_sha256 and is_known else None


NOT_FOR_USE = ("INT4_GPTQ", "INT4_AWQ")
"""Types that llama.cpp does not have, written as F16 to be measured: see `quantize.int4`."""


@dataclass(frozen=True)
class QuantFacts:
    """A verified quantized GGUF.

    `fallback`: tensors that could not get the type they should have. Perplexities are over
    `n_windows` held-out windows of 512 tokens, NaN if not measured. `seconds` is the time to
    quantize; None if the file was in the store. `name` is the file's name in this request; in the
    store it may have an earlier one's. `scaled`: what AWQ did, in words.
    """

    type: str
    path: Path
    name: str
    size_bytes: int
    sha256: str
    bits_per_weight: float
    n_tensors: int
    fallback: tuple[str, ...]
    perplexity: float
    perplexity_reference: float
    n_windows: int
    seconds: float | None
    scaled: str = ""


@dataclass(frozen=True)
class ComputeOptions:
    """How to run llama.cpp; None chooses by machine and model.

    `n_ctx`: tokens in a window, or in a prompt with its answer. `n_batch` is in tokens.
    `gpu_layers` 0 uses no GPU at all; None, without an `override_tensor`, is planned (see
    `llamacpp.offload`), so that `fit_target_mib` of each device's memory stay free.
    `override_tensor` is the value of llama.cpp's option: REGEX=BUFFER, with commas between.
    """

    backend: str
    threads: int | None = None
    n_ctx: int | None = None
    n_batch: int | None = None
    gpu_layers: int | None = None
    override_tensor: str = ""
    fit_target_mib: int = 1024


@dataclass(frozen=True)
class TypeChoice:
    """How the types of tensors are chosen at a size; what is empty is decided by model and text.

    `languages` with weights: whose loss is made small. `at_least`: roles of tensors with their
    smallest type. `types` of tensors that are allowed. `no_worse_than`: languages that must not
    lose more than with a standard type.
    """

    languages: tuple[tuple[str, float], ...] = ()
    at_least: tuple[tuple[str, str], ...] = ()
    types: tuple[str, ...] = ()
    no_worse_than: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True)
class Request:
    """A tuning run: from text to quantized files, which go to the folder `out`.

    `text`: a language or mixture, a corpus folder, or a text file. `model`: see `models.resolve`.
    `force` uses an imatrix of the user's own in spite of its errors. `quick` compares the first
    file with others; None: if that is quick. `study` is a folder for the model card. `moments`
    are collected too, whole for the matrices that `full` matches; `windows` are those of the
    `stream` of tokens, or each in one `document`. `memory_bytes` is what collecting may use; None:
    what is free. `awq`, `feedback`: see the modules in `quantize`. `types` may be sizes (see
    `llamacpp.size_types`), for which `choice` says how the types of tensors are chosen.
    `quantized_by` is a name for the files' metadata.
    """

    text: str
    types: tuple[str, ...]
    model: str
    n_tokens: int
    out: Path
    compute: ComputeOptions
    parse_special: bool = False
    process_output: bool = False
    allow_requantize: bool = False
    corpus: TextOptions = field(default_factory=TextOptions)
    force: bool = False
    quick: bool | None = None
    study: Path | None = None
    moments: bool = False
    full: str = ""
    awq: bool = False
    feedback: bool = False
    windows: str = "stream"
    memory_bytes: int | None = None
    field: str = ""
    choice: TypeChoice = TypeChoice()
    quantized_by: str = ""


@dataclass(frozen=True)
class ScoreRequest:
    """Which quants to score on which texts, and how; None chooses.

    Models: see `models.resolve`. `texts`: label and file; a label alone is a language, for its
    held-out text. `protocol` is `document` or `llamacpp`; `limit` the most documents of a text, and
    `document_tokens` the most tokens of each, from its start.
    `base_logits`: `live` (reference and some quants in memory at once), `cached` (one at a time;
    the probability outside the top K may be `rest_share`) or `auto`. `n_rows`: rows of logits in a
    decode. `field`: as in `Request`.
    """

    reference: str
    quants: tuple[str, ...]
    texts: tuple[tuple[str, Path | None], ...]
    out: Path
    compute: ComputeOptions
    protocol: str = "document"
    overlap: int | None = None
    limit: int | None = None
    document_tokens: int | None = None
    base_logits: str = "auto"
    rest_share: float = 0.01
    n_rows: int | None = None
    field: str = ""


@dataclass(frozen=True)
class ChoiceItem:
    """A multiple-choice question, scored by likelihood.

    `prefix` is text before the context that many items share (few-shot examples); `options`
    continue the context, with their leading space.
    """

    id: str
    prefix: str
    context: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class ChoiceScores:
    """The likelihoods of an item's options, each summed over its tokens.

    `error`: why the item has no scores.
    """

    id: str
    logprobs_nats: tuple[float, ...]
    n_tokens: tuple[int, ...]
    n_bytes: tuple[int, ...]
    error: str = ""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: a higher `temperature` than 1 makes rare ones more probable."""

    temperature: float
    seed: int = 0


@dataclass(frozen=True)
class GenerateItem:
    """A chat, or plain text, to be continued.

    `messages` are (role, content); the role of plain text is "". The answer ends before a `stop`.
    `thinking`: whether the model is let think first, where that can be chosen; `thought_tokens` are
    how many more it may write then. Without `sampling` every token is the most probable one.
    """

    id: str
    messages: tuple[tuple[str, str], ...]
    max_tokens: int
    stop: tuple[str, ...] = ()
    thinking: bool = False
    thought_tokens: int = 0
    sampling: Sampling | None = None


@dataclass(frozen=True)
class Generated:
    """A model's answer, or the `error` that is why there is none.

    `text` begins with the model's thoughts, if it has any: see `llamacpp.thoughts`. `n_tokens`
    includes the end token. `finish` is `stop` (a stop string), `eos` or `length`.
    """

    id: str
    text: str
    n_tokens: int
    finish: str
    error: str = ""


@dataclass(frozen=True)
class TaskRequest:
    """Which benchmarks to run on which quants, and how; None chooses, as each task says.

    `tasks` are names or TOML files; without `languages`, every language of a task. `quants`: see
    `models.resolve`; with `endpoint`, an OpenAI-compatible server's address, its names of models.
    `data` replaces the Hub. `limit`: at most so many items of each task and language, drawn by id.
    `max_tokens` of an answer; `thinking`: whether models that can may think first. `keep_text`
    writes prompts and outputs into the records; `api_key` is never written to disk.
    """

    tasks: tuple[str, ...]
    languages: tuple[str, ...]
    quants: tuple[str, ...]
    out: Path
    compute: ComputeOptions
    data: Path | None = None
    limit: int | None = None
    variant: str | None = None
    shots: int | None = None
    max_tokens: int | None = None
    thinking: bool | None = None
    keep_text: bool = False
    endpoint: str = ""
    api_key: str = field(default="", repr=False)
    parallel: int = 16


@dataclass(frozen=True)
class ChatRequest:
    """Which model judges or translates; fields as in `TaskRequest`.

    `parallel` requests at a time: a local server needs memory for the context of each.
    """

    model: str
    compute: ComputeOptions
    endpoint: str = ""
    api_key: str = field(default="", repr=False)
    parallel: int = 4
