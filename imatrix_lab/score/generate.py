"""Free-form answers in process: greedy or sampled, many at a time.

Each answer has a slot: a sequence with its own memory. A prompt except for its last token is
decoded by itself when it takes a slot; then all slots advance by one token in each decode. A slot
whose answer has ended takes the next item, or idles where none is left.

On a CPU with 16 or more answers at a time, an answer depends only on its item, to the last bit:
no decode has fewer tokens than `STEP_MIN`, except that of a shorter prompt. With fewer at a time
every decode has that many tokens, and the last bits of a logit can depend on the number, as they
do on a GPU: where two tokens are almost equally probable, answers can differ. The same items in
the same order, with the same settings, give the same answers.

Sampling adds Gumbel noise to the logits and takes the largest sum, which draws from their softmax
(Maddison, Tarlow and Minka 2014, arXiv 1411.0030). The noise depends on seed, item, position and
token alone: two models of one vocabulary draw alike, and differ where their probabilities do.
"""

import codecs
import dataclasses
import math
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np

from imatrix_lab.core.progress import Progress
from imatrix_lab.llamacpp import thoughts
from imatrix_lab.llamacpp.native import Interruptible
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models import chat_template
from imatrix_lab.models.chat_template import Rendered
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.score.choice_layout import common
from imatrix_lab.score.engine import Engine
from imatrix_lab.score.job import NOT_FINITE, Setup
from imatrix_lab.score.windows import STEP_MIN, Decode
from imatrix_lab.types import Generated, GenerateItem, Model, Sampling

MIN_P = 0.05
"""Tokens less probable than this share of the most probable one are not drawn, as in llama.cpp."""


@dataclass(frozen=True)
class Prompt:
    """An item's prompt in tokens; it ends with the beginning of thoughts if it `opened` them."""

    item: GenerateItem
    tokens: tuple[int, ...]
    opened: str = ""


def prompts(
    vocabulary: Vocabulary, model: Model, items: Sequence[GenerateItem], n_ctx: int
) -> tuple[list[Prompt], list[Generated]]:
    """Return the prompts of items, and failed answers for items without a possible prompt.

    A chat is written with the model's template. Where the model has none, and for messages whose
    roles are "", the prompt is the plain contents, with a blank line between them. Thoughts have
    room beyond `n_ctx`, as far as the model was trained.
    """
    possible, failed = [], []
    longest = max(n_ctx, model.facts.n_ctx_train or sys.maxsize)
    for item, chat in zip(items, _chats(model, items), strict=True):
        tokens, error = [], ""
        if chat is None:
            tokens = vocabulary.tokens("\n\n".join(content for _, content in item.messages))
        elif chat.error:
            is_ours = chat.error == chat_template.LEFT_OUT
            error = chat.error if is_ours else f"the chat template refuses it: {chat.error}"
        else:
            tokens = vocabulary.tokens(chat.text, parse_special=True)
        if len(tokens) + item.max_tokens > n_ctx:
            n = f"{len(tokens)} tokens, and {item.max_tokens} to answer, of {n_ctx}"
            error = f"prompt longer than the context: {n}"
        elif not tokens and not error:
            error = "the prompt is empty"
        elif item.max_tokens < 1:
            error = f"max_tokens is {item.max_tokens}"
        if error:
            failed.append(Generated(item.id, "", 0, "", error))
        else:
            room = min(n_ctx + item.thought_tokens, longest) - len(tokens)
            most = min(item.max_tokens + item.thought_tokens, room)
            opened = chat.opened if chat else ""
            longer = dataclasses.replace(item, max_tokens=most)
            possible.append(Prompt(longer, tuple(tokens), opened))
    return possible, failed


def _chats(model: Model, items: Sequence[GenerateItem]) -> list[Rendered | None]:
    """Return chats as the model's template writes them; None for other items."""
    rendered: dict[int, Rendered] = {}
    numbers = [i for i, item in enumerate(items) if any(role for role, _ in item.messages)]
    if numbers and chat_template.of(model):
        chats = [[{"role": r, "content": c} for r, c in items[i].messages] for i in numbers]
        with tempfile.TemporaryDirectory() as scratch:
            thinking = any(item.thinking for item in items)
            texts = chat_template.render(model, chats, Path(scratch), True, thinking)
        rendered = dict(zip(numbers, texts, strict=True))
    return [rendered.get(i) for i in range(len(items))]


def generate(
    tools: Toolchain, model: Model, items: Iterable[GenerateItem], setup: Setup, progress: Progress
) -> Iterator[Generated]:
    """Yield answers as they end; failed items, which have an error, come first."""
    items = list(items)
    with (
        progress.task(f"answers, {model.label}", len(items), "items") as task,
        Vocabulary(tools, model.path) as vocabulary,
    ):
        possible, failed = prompts(vocabulary, model, items, setup.engine.n_ctx)
        yield from failed
        if not possible:
            return
        longest = max(len(p.tokens) + p.item.max_tokens for p in possible)
        n_ctx = math.ceil(longest / 256) * 256  # llama.cpp's unit of a sequence's memory
        settings = dataclasses.replace(setup.engine, n_ctx=n_ctx, sequences_max=setup.parallel)
        runner = Interruptible()
        with Engine(tools, setup.kernel, model, settings, runner, streams=True) as engine:
            task.update(len(failed))  # no note: nothing was done by an earlier run

            # not by way of `slots`, which holds it: in a circle, threads stay until a collection
            def report(done: float, n_generated: int) -> None:
                rate = n_generated / max(engine.seconds, 1e-9)
                task.update(len(failed) + done, f"{rate:.1f} tokens/s")

            slots = _Slots(engine, vocabulary, setup, report)
            yield from slots.run(possible)


class Sampler:
    """Draws the tokens of one item's answer, in order."""

    def __init__(self, sampling: Sampling, item_id: str):
        self._temperature = sampling.temperature
        key = sha256(f"{sampling.seed}\0{item_id}".encode()).digest()[:16]
        # its raw numbers are the same in every version of numpy
        self._bits = np.random.Philox(key=int.from_bytes(key, "little"))

    def draw(self, logits: np.ndarray) -> int:
        """Return a token, given float32 logits (vocabulary)."""
        uniform = ((self._bits.random_raw(len(logits)) >> np.uint64(11)) + 0.5) * 2.0**-53
        drawn = logits / self._temperature - np.log(-np.log(uniform))
        drawn[logits < logits.max() + math.log(MIN_P)] = -np.inf
        return int(drawn.argmax())


@dataclass
class _Answer:
    """An answer that is being generated: `last` is its last token, at `position`.

    `sampler` is None where every token is the most probable one.
    """

    prompt: Prompt
    last: int
    position: int
    raw: bytearray = field(default_factory=bytearray)
    sampler: Sampler | None = None
    n_tokens: int = 0

    def cut_at_stop(self, n_new: int) -> bool:
        """Cut the text before the first stop string; its last `n_new` bytes are new.

        A stop string ends an answer, not the thoughts before it.
        """
        before = len(self.raw) - n_new + 1
        stops = [stop.encode() for stop in self.prompt.item.stop if stop]
        ends = [self.raw.find(stop, max(0, before - len(stop))) for stop in stops]
        if not any(end >= 0 for end in ends):
            return False
        text = self.raw.decode("utf-8", "surrogateescape")
        kept = thoughts.before_stop(text, self.prompt.item.stop)
        self.raw = bytearray(kept.encode("utf-8", "surrogateescape"))
        return kept != text

    def text(self) -> str:
        """Return the text so far, without an incomplete character at its end."""
        return codecs.getincrementaldecoder("utf-8")("replace").decode(bytes(self.raw))


class _Slots:
    """Sequences of an engine, each with an answer or none.

    `report`: called after each step with the number of answers done, of which each open one counts
        by its share of `max_tokens`, and that of tokens generated.
    _kept : of each slot, the tokens at the start of its memory.
    _spoilt : some memory holds a value that is not finite, and is wiped before the next item.
    """

    def __init__(
        self,
        engine: Engine,
        vocabulary: Vocabulary,
        setup: Setup,
        report: Callable[[float, int], None],
    ):
        self._engine, self._vocabulary, self._setup = engine, vocabulary, setup
        self._report = report
        self._answers: list[_Answer | None] = [None] * setup.parallel
        self._kept: list[tuple[int, ...]] = [()] * setup.parallel
        self._spoilt = False
        self.n_generated = self._n_ended = 0

    def run(self, prompts: Sequence[Prompt]) -> Iterator[Generated]:
        """Yield the answers as they end."""
        waiting = deque(prompts)
        self._engine.begin()
        while waiting or any(self._answers):
            while waiting and not all(self._answers) and not self._spoilt:
                self._join(waiting.popleft())
            if any(self._answers):
                for ended in self._step():
                    self._n_ended += 1
                    yield ended
                shares = (a.n_tokens / a.prompt.item.max_tokens for a in self._answers if a)
                self._report(self._n_ended + sum(shares), self.n_generated)
            elif self._spoilt:
                self._engine.begin()
                self._kept = [()] * len(self._kept)
                self._spoilt = False

    def _join(self, prompt: Prompt) -> None:
        """Decode a prompt except its last token, in the free slot that holds most of it.

        At least `STEP_MIN` tokens are decoded, or all: fewer would give other bits.
        """
        tokens = prompt.tokens[:-1]
        free = [i for i, answer in enumerate(self._answers) if answer is None]
        alike = {i: common([self._kept[i], tokens]) for i in free}
        slot = max(free, key=lambda i: alike[i])
        kept = self._rewind(slot, max(0, min(alike[slot], len(tokens) - STEP_MIN)))
        n_parts = math.ceil((len(tokens) - kept) / self._setup.engine.n_batch)
        for part in np.array_split(np.arange(kept, len(tokens)), max(1, n_parts)):
            if n := len(part):
                own = tokens[part[0] : part[0] + n]
                self._engine.decode(_decode(own, part, [slot] * n, output=False))
        self._kept[slot] = tokens
        raw = bytearray(prompt.opened.encode())
        item = prompt.item
        sampler = Sampler(item.sampling, item.id) if item.sampling else None
        self._answers[slot] = _Answer(prompt, prompt.tokens[-1], len(tokens) - 1, raw, sampler)

    def _step(self) -> Iterator[Generated]:
        """Advance every slot by one token; yield the answers that end.

        llama.cpp decodes neighbouring sequences together, so idle slots between them and up to
        `STEP_MIN` take part: their token is forgotten.
        """
        busy = [i for i, answer in enumerate(self._answers) if answer is not None]
        last = max(busy[-1] + 1, min(busy[0] + STEP_MIN, len(self._answers)))
        slots = range(min(busy[0], max(0, last - STEP_MIN)), last)
        tokens, positions = zip(*map(self._next, slots), strict=True)
        decode = _decode(tokens, positions, slots, output=True)
        logits = self._engine.decode(decode)
        rows = self._setup.kernel.rows(logits)
        for slot, row, top, log_sum in zip(slots, logits, rows.top, rows.log_sum, strict=True):
            if answer := self._answers[slot]:
                finite = math.isfinite(log_sum)
                token = answer.sampler.draw(row) if answer.sampler and finite else int(top)
                if ended := self._add(slot, answer, token, finite):
                    yield ended
            else:
                self._rewind(slot, len(self._kept[slot]))

    def _rewind(self, slot: int, n: int) -> int:
        """Keep the first `n` tokens of a slot, or none if the model cannot keep a part."""
        if not self._engine.forget(slot, n):
            self._engine.forget(slot)
            n = 0
        self._kept[slot] = self._kept[slot][:n]
        return n

    def _next(self, slot: int) -> tuple[int, int]:
        """Return the token that a slot decodes next, and its position."""
        if answer := self._answers[slot]:
            answer.position += 1
            return answer.last, answer.position
        return 0, len(self._kept[slot])

    def _add(self, slot: int, answer: _Answer, token: int, finite: bool) -> Generated | None:
        """Add a token to a slot's answer; if that ends it, free the slot and return it."""
        item = answer.prompt.item
        finish, error = "", ""
        answer.n_tokens += 1
        self.n_generated += 1
        if not finite:
            error, self._spoilt = NOT_FINITE, True
        elif self._vocabulary.is_end(token):
            finish = "eos"
        else:
            piece = self._vocabulary.piece(token)
            answer.raw += piece
            answer.last = token
            if answer.cut_at_stop(len(piece)):
                finish = "stop"
            elif answer.n_tokens == item.max_tokens:
                finish = "length"
        if not finish and not error:
            return None
        self._answers[slot] = None
        self._rewind(slot, len(answer.prompt.tokens) - 1)
        if error:
            return Generated(item.id, "", 0, "", error)
        return Generated(item.id, answer.text(), answer.n_tokens, finish)


def _decode(*columns: Sequence[int] | np.ndarray, output: bool) -> Decode:
    """Return a decode of tokens, positions and sequences; all rows are outputs, or none."""
    tokens, positions, sequences = (np.array(c, np.int32) for c in columns)
    return Decode(tokens, positions, sequences, np.ones_like(tokens), np.full(len(tokens), output))
