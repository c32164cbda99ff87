"""What passes between stages, and from stages to the command line."""

from dataclasses import dataclass, field
from pathlib import Path

TOKENS_DEFAULT = 65_536
"""Calibration text, in tokens of the model: practice in the field is 60k to 130k."""


@dataclass(frozen=True)
class ModelFacts:
    """What a GGUF model says of itself; read from its headers alone.

    Attributes
    ----------
    channels : embedding length.
    fallback : tensors whose rows are not a multiple of 256, so that a k-quant of them
        silently becomes a 32-wide type.
    imatrix_sha256, calibration : of a quant, as its metadata has them: the imatrix and its
        language or text; empty without one.
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
    label : short name used in file names.
    path : the file to hand to llama.cpp (the first shard of a split model).
    sha256 : of the file; of the shards' sha256, joined, for a split model.
    origin : where it came from, as the user may repeat it; no path of this machine.
    base_model : Hub repository of the original, where known.
    notice : licence files that go along with what is made from it.
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
    """How a corpus is made, apart from its language and budget.

    Attributes
    ----------
    sources : names of the sources to calibrate on; none: in the language's order, until the
        budget is met.
    heldout : name of the source to hold out; empty: the one written for that, or a spare one.
    licence : the most binding licence class admitted; empty: any.
    seed : of every draw.
    sample, n_samples : which of how many disjoint calibration samples, from 1.
    chat : share of the tokens that is chats, in the model's own template.
    exclude : evaluation sets whose text must not be calibrated on.
    workers : processes for cleaning; changes no byte.
    renew : choose the sources anew.
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
    """A corpus on this disk, as its manifest has it.

    Attributes
    ----------
    calibration, heldout : the files.
    n_tokens, n_heldout_tokens : tokens of each text in the model's vocabulary, BOS included.
    sha256 : of calibration.txt.
    sample : ``2/5`` for the second of five samples; empty for one alone.
    parse_special : it has chat tokens, which llama-imatrix must be told to read as such.
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
    """An importance matrix on this disk, checked.

    Attributes
    ----------
    n_tokens, n_ctx : tokens whose activations were summed, and of a window; 0 if unknown (a
        ``.dat`` does not say).
    unhit_experts : how many (tensor, expert) pairs saw no token.
    forced : the errors in spite of which it is used, as the user said; empty if there are none.
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
    """One quantized GGUF, verified.

    Attributes
    ----------
    fallback : tensors that llama-quantize could not give the type it wanted.
    perplexity, perplexity_reference : over `n_windows` held-out windows of 512 tokens; NaN if
        it was not verified so.
    seconds : what quantizing took when it was done; None when it came from the store.
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
    n_ctx : tokens of a window, or of a prompt with its answer.
    n_batch : tokens of a decode.
    gpu_layers : layers on the GPU.
    """

    backend: str
    threads: int | None = None
    n_ctx: int | None = None
    n_batch: int | None = None
    gpu_layers: int | None = None


@dataclass(frozen=True)
class Request:
    """What a user asked for.

    Attributes
    ----------
    text : a language or mixture of them, a corpus folder, or a text file.
    types : quant types, canonical names.
    model : see `models.resolve`.
    n_tokens : calibration budget in the model's tokens.
    out : folder for finished files.
    force : use an imatrix of the user's own that fails its check.
    quick : whether to say what tuning bought; None if it does not take long.
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
    """Which quants to score on which texts, and how.

    Attributes
    ----------
    reference, quants : see `models.resolve`.
    texts : label and file of each; a label alone is a language, whose held-out text is meant.
    protocol : `document` or `llamacpp`.
    overlap : None chooses by protocol.
    limit : only the first so many documents of each text; None for all.
    base_logits : `live` (all models in memory at once), `cached` (one at a time) or `auto`.
    rest_share : with `cached`, the probability that may be left outside the top K.
    n_rows : rows of logits a decode; None chooses by vocabulary and backend.
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
    """A question whose answers are written out, for scoring by likelihood.

    Attributes
    ----------
    prefix : text that many items share (few-shot examples), before the context; may be empty.
    context : the item's own text.
    options : continuations as they are written, with their leading space.
    """

    id: str
    prefix: str
    context: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class ChoiceScores:
    """What a model thinks of an item's options, one entry an option.

    Attributes
    ----------
    logprobs_nats : log-probability, summed over the option's tokens.
    n_tokens, n_bytes : length of what was summed, and of the option as it is written.
    error : why the item has no scores; then the rest is empty.
    """

    id: str
    logprobs_nats: tuple[float, ...]
    n_tokens: tuple[int, ...]
    n_bytes: tuple[int, ...]
    error: str = ""


@dataclass(frozen=True)
class GenerateItem:
    """A chat, or with the role "" plain text, to be continued.

    Attributes
    ----------
    messages : (role, content), in order.
    stop : strings that end the answer, and are not part of it.
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
    n_tokens : tokens that were generated, the end token included.
    finish : `stop` (a stop string), `eos` (an end token) or `length` (`max_tokens`).
    error : why there is no answer; then `finish` is empty.
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
    languages : codes; empty for every language a task has.
    quants : see `models.resolve`; with `endpoint`, what it calls the model.
    data : a local file or folder in place of the Hub.
    limit : only so many items of each task and language, drawn by their ids; None for all.
    variant : how options are scored by likelihood; None for the task's own way.
    shots : solved examples before each item; None for the task's own number.
    keep_text : prompts and outputs go into the records.
    endpoint : address of an OpenAI-compatible server that answers instead; empty: in process.
    api_key : of the endpoint; never written anywhere.
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
    """Which model judges or translates.

    Attributes
    ----------
    model : see `models.resolve`; with `endpoint`, what it calls the model.
    endpoint, api_key : see `TaskRequest`.
    parallel : requests at a time; a server here has memory for the context of each.
    """

    model: str
    compute: ComputeOptions
    endpoint: str = ""
    api_key: str = field(default="", repr=False)
    parallel: int = 4
