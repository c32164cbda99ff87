"""What passes between stages, and from stages to the command line."""

from dataclasses import dataclass, field
from pathlib import Path

TOKENS_DEFAULT = 65_536
"""Calibration text, in tokens of the model: practice in the field is 60k to 130k."""


@dataclass(frozen=True)
class ModelFacts:
    """What the headers of a GGUF model say.

    Attributes
    ----------
    channels : embedding length.
    fallback : tensors whose rows are not a multiple of 256: llama-quantize falls back to a
        32-wide type for them.
    imatrix_sha256, calibration : of a quant: its imatrix, and that one's language or text.
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


@dataclass(frozen=True)
class Model:
    """A model on this disk.

    Attributes
    ----------
    label : short name for file names.
    path : the file for llama.cpp (the first shard of a split model).
    sha256 : of the file; of the joined sha256 of the shards for a split model.
    origin : the name to fetch it again; no path of this machine.
    base_model : Hub repository of the original, where known.
    notice : licence files that must accompany its quants.
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
    """How a corpus is built, apart from its language and budget.

    Attributes
    ----------
    sources : names of the sources; none: in the language's order, until the budget is met.
    heldout : name of the held-out source; empty: the one written for that, or an unused one.
    licence : the most restrictive licence class allowed; empty: any.
    seed : for every random choice.
    sample, n_samples : which of how many disjoint calibration samples, from 1.
    chat : share of the tokens that is chats, in the model's own template.
    exclude : evaluation sets whose text must not be in the calibration text.
    workers : processes for cleaning; does not change the result.
    renew : choose the sources again.
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


@dataclass(frozen=True)
class CorpusFacts:
    """A corpus on this disk, as its manifest describes it.

    Attributes
    ----------
    n_tokens, n_heldout_tokens : tokens of each text in the model's vocabulary, BOS included.
    sha256 : of calibration.txt.
    sample : ``2/5`` for the second of five samples; empty for the only one.
    parse_special : it has chat tokens, which llama-imatrix must parse.
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


@dataclass(frozen=True)
class ImatrixFacts:
    """A checked importance matrix on this disk.

    Attributes
    ----------
    n_tokens, n_ctx : tokens in all and in a window; 0 if unknown, as from a ``.dat``.
    unhit_experts : number of (tensor, expert) pairs without a token.
    forced : the errors that the user chose to ignore.
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


@dataclass(frozen=True)
class QuantFacts:
    """A verified quantized GGUF.

    Attributes
    ----------
    fallback : tensors that could not get the type they should have.
    perplexity, perplexity_reference : over `n_windows` held-out windows of 512 tokens; NaN if
        not measured.
    seconds : time that quantizing took; None if the file was in the store.
    """

    type: str
    path: Path
    size_bytes: int
    sha256: str
    bits_per_weight: float
    n_tensors: int
    fallback: tuple[str, ...]
    perplexity: float
    perplexity_reference: float
    n_windows: int
    seconds: float | None


@dataclass(frozen=True)
class ComputeOptions:
    """How to run llama.cpp; None chooses by machine and model.

    Attributes
    ----------
    n_ctx : tokens in a window, or in a prompt with its answer.
    n_batch : batch size in tokens.
    """

    backend: str
    threads: int | None = None
    n_ctx: int | None = None
    n_batch: int | None = None
    gpu_layers: int | None = None


@dataclass(frozen=True)
class Request:
    """A tuning run: from text to quantized files.

    Attributes
    ----------
    text : a language or mixture, a corpus folder, or a text file.
    types : canonical names of quant types.
    model : see `models.resolve`.
    n_tokens : calibration budget in the model's tokens.
    out : folder for finished files.
    force : use an imatrix of the user's own in spite of its errors.
    quick : compare the first file with others; None: if that is quick.
    study : folder of a study for the model card.
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


@dataclass(frozen=True)
class ScoreRequest:
    """Which quants to score on which texts, and how; None chooses.

    Attributes
    ----------
    reference, quants : see `models.resolve`.
    texts : label and file of each; a label alone is a language, for its held-out text.
    protocol : `document` or `llamacpp`.
    limit : at most so many documents of each text.
    base_logits : `live` (all models in memory at once), `cached` (one at a time) or `auto`.
    rest_share : with `cached`, the probability that may be outside the top K.
    n_rows : rows of logits in a decode.
    """

    reference: str
    quants: tuple[str, ...]
    texts: tuple[tuple[str, Path | None], ...]
    out: Path
    compute: ComputeOptions
    protocol: str = "document"
    overlap: int | None = None
    limit: int | None = None
    base_logits: str = "auto"
    rest_share: float = 0.01
    n_rows: int | None = None


@dataclass(frozen=True)
class ChoiceItem:
    """A multiple-choice question, scored by likelihood.

    Attributes
    ----------
    prefix : text before the context that many items share (few-shot examples).
    options : continuations of the context, with their leading space.
    """

    id: str
    prefix: str
    context: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class ChoiceScores:
    """The likelihoods of an item's options, one entry for each.

    Attributes
    ----------
    logprobs_nats : summed over the option's `n_tokens` tokens.
    error : why the item has no scores.
    """

    id: str
    logprobs_nats: tuple[float, ...]
    n_tokens: tuple[int, ...]
    n_bytes: tuple[int, ...]
    error: str = ""


@dataclass(frozen=True)
class GenerateItem:
    """A chat, or plain text, to be continued.

    Attributes
    ----------
    messages : (role, content); the role of plain text is "".
    stop : strings that end the answer and are not part of it.
    """

    id: str
    messages: tuple[tuple[str, str], ...]
    max_tokens: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Generated:
    """A model's answer.

    Attributes
    ----------
    n_tokens : generated tokens, the end token included.
    finish : `stop` (a stop string), `eos` (an end token) or `length` (`max_tokens`).
    error : why there is no answer.
    """

    id: str
    text: str
    n_tokens: int
    finish: str
    error: str = ""


@dataclass(frozen=True)
class TaskRequest:
    """Which benchmarks to run on which quants, and how.

    Attributes
    ----------
    tasks : names, or TOML files of the user's own.
    languages : codes; empty: every language of a task.
    quants : see `models.resolve`; with `endpoint`, the server's names of models.
    data : a local file or folder in place of the Hub.
    limit : at most so many items of each task and language, drawn by their ids.
    variant, shots : scoring of options and number of solved examples; None: the task's own.
    keep_text : write prompts and outputs into the records.
    endpoint : address of an OpenAI-compatible server; empty: answer in this process.
    api_key : of the endpoint; never written to disk.
    parallel : answers at a time.
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
    keep_text: bool = False
    endpoint: str = ""
    api_key: str = field(default="", repr=False)
    parallel: int = 16


@dataclass(frozen=True)
class ChatRequest:
    """Which model judges or translates; fields as in `TaskRequest`.

    `parallel`: requests at a time; a local server needs memory for the context of each.
    """

    model: str
    compute: ComputeOptions
    endpoint: str = ""
    api_key: str = field(default="", repr=False)
    parallel: int = 4
