"""What is fuzzed: for each format honest files, and what the commands make of such a file."""

import dataclasses
import functools
import importlib
import io
import json
import math
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from fuzz_inputs import as_json, as_toml
from huggingface_hub import close_session, set_client_factory
from huggingface_hub.utils._http import default_client_factory

from imatrix_lab.compare import compare
from imatrix_lab.compare.design import ComparisonPlan
from imatrix_lab.core import config, digests, hub_http
from imatrix_lab.core.files import canonical_json, sealed_json, unsealed
from imatrix_lab.core.hub_cache import CachedRepo
from imatrix_lab.core.paths import data_dir
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import BadRecords, ImatrixLabError
from imatrix_lab.imatrix import format as imatrices
from imatrix_lab.imatrix import merge, moments, statistics, validate
from imatrix_lab.llamacpp.client import Client
from imatrix_lab.models import chat_template, effective, hub, hub_spec, resolve
from imatrix_lab.models import gguf as headers
from imatrix_lab.publish.preference import pack, prompts, votes
from imatrix_lab.quantize import sensitivity
from imatrix_lab.records import parquet, runs, summary
from imatrix_lab.report import html, markdown, results
from imatrix_lab.study import recipe
from imatrix_lab.study import validate as study
from imatrix_lab.tasks import definition, items, load, locale, prompt
from imatrix_lab.tasks.journal import Journal
from imatrix_lab.types import Generated, GenerateItem, Model

Write = Callable[[Path, Any], Any]


@dataclass(frozen=True)
class Case:
    """An honest file; with `write`, its `value` (JSON) is changed too, and written again."""

    path: Path
    value: Any = None
    write: Write | None = None
    share_of_bytes: float = 0.3


@dataclass(frozen=True)
class Target:
    """A format: `honest` makes files in a folder, `read` returns all that is read of one.

    A `guarded` format has checksums: no change of bytes gives other numbers.
    """

    name: str
    honest: Callable[[Path], list[Case]]
    read: Callable[[Path], Any]
    guarded: bool = False


def _test(module: str) -> Any:
    root = str(Path(__file__).parents[1])
    sys.path[:0] = [] if root in sys.path else [root]
    return importlib.import_module(f"tests.{module}")


def _json_file(path: Path, value: Any) -> None:
    path.write_bytes(as_json(value))


def _sealed_file(path: Path, value: Any) -> None:
    """Write JSON with a good digest, whatever it says."""
    try:
        path.write_text(sealed_json(value), encoding="utf-8")
    except Exception:  # it cannot be sealed, as when it is no table
        _json_file(path, value)


def _toml_file(path: Path, value: Any) -> None:
    path.write_bytes(as_toml(value))


def _json_case(path: Path, value: Any) -> Case:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return Case(path, value, _json_file)


def _toml_case(path: Path, text: str) -> Case:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return Case(path, tomllib.loads(text), _toml_file)


# -- models


def _models(folder: Path) -> list[Case]:
    made = _test("models.headers")
    folder.mkdir(parents=True)
    long = {**made.BPE, "tokenizer.ggml.tokens": [f"t{i}" for i in range(400)]}
    more = {"tokenizer.chat_template": "{{ messages }}", "general.file_type": 15,
            "imatrix_lab.language": "nb", "split.count": 1, "split.tensors.count": 11,
            "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.add_bos_token": True}  # fmt: skip
    return [
        Case(made.whole(folder / "bpe.gguf", made.BPE)),
        Case(made.whole(folder / "spm.gguf", made.SPM, more)),
        Case(made.write(folder / "long.gguf", "qwen2", long, {"general.license": "mit"})),
    ]


def _read_model(path: Path) -> Any:
    header = headers.read_header(path)
    whole = headers.read_header(path, keep_arrays=True)
    facts = resolve.facts(headers.shard_paths(path))
    return (header.metadata, whole.metadata, header.tensors, dataclasses.astuple(facts),
            repr(effective.tokenizer(header)), repr(effective.hyperparameters(header)))  # fmt: skip


# -- imatrices


def _imatrix(experts: int = 1) -> imatrices.Imatrix:
    rng = np.random.default_rng(experts)
    entries = {
        f"blk.{i}.{name}.weight": imatrices.Entry(
            rng.gamma(2, 9, (experts, 64)).astype(np.float32), np.full(experts, 1024, np.float32)
        )
        for i in range(2)
        for name in ("attn_q", "ffn_down_exps")
    }
    about = {"imatrix_lab.language": "nb", imatrices.MODEL: "ab" * 32}
    return imatrices.Imatrix(entries, ("nb.txt", "x"), 2, 512, "nb", about)


def _imatrices(folder: Path) -> list[Case]:
    for experts in (1, 4):
        imatrices.write(folder / f"{experts}.gguf", _imatrix(experts))
    plain = dataclasses.replace(_imatrix(), metadata={}, language="")
    imatrices.write(folder / "plain.gguf", plain)
    return [Case(folder / f"{name}.gguf") for name in ("1", "4", "plain")]


def _dats(folder: Path) -> list[Case]:
    for experts in (1, 4):
        imatrices.write(folder / f"{experts}.dat", _imatrix(experts))
    whole = (folder / "1.dat").read_bytes()
    (folder / "old.dat").write_bytes(whole[: -8 - len(b"x")])  # before there was a dataset
    return [Case(folder / f"{name}.dat") for name in ("1", "4", "old")]


def _moments(folder: Path) -> list[Case]:
    folder.mkdir(parents=True)
    rng, made = np.random.default_rng(1), _test("imatrix.made_up")
    rows = {
        "blk.0.attn_q.weight": [rng.normal(size=(40, 96)).astype(np.float32)],
        "blk.0.ffn_up_exps.weight": [rng.normal(size=(9, 32)).astype(np.float32)] * 2,
    }
    made.write_moments(folder / "moments.gguf", rows, block=32)
    return [Case(folder / "moments.gguf")]


def _read_imatrix(path: Path) -> Any:
    imatrix = imatrices.read(path)
    findings = validate.check(imatrix)
    with np.errstate(all="ignore"):
        shown = [dataclasses.astuple(row) for row in statistics.of(imatrix)]
    wrong = moments.check(path)
    out = path.with_name("out")
    again: list[str] = []
    for target in (out / "again.gguf", out / "again.dat"):
        with _allowed(again):
            imatrices.write(target, imatrix)
            again.append(target.read_bytes().hex())
    with _allowed(again), np.errstate(all="ignore"):
        inputs = [merge.MergeInput(path, imatrix, 1.0), merge.MergeInput(path, imatrix, 2.0)]
        mixed = merge.merge(inputs, "energy")
        again.append(repr(mixed.chunk_count))
    entries = {name: (e.sums.tobytes(), e.counts.tobytes()) for name, e in imatrix.entries.items()}
    return entries, findings, repr(shown), imatrix.datasets, repr(wrong), again


class _allowed:
    """Notes an expected error of a later step, which is no error of reading."""

    def __init__(self, notes: list[str]):
        self.notes = notes

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, ImatrixLabError):
            self.notes.append(type(error).__name__)
            return True
        return False


def _sensitivities(folder: Path) -> list[Case]:
    rng = np.random.default_rng(1)
    tokens = (120, 90, 200, 64)
    parts = {
        f"attn_q.{i}": {
            kind: sensitivity.coefficient(types[0], 0.5 + i, rng.gamma(2, 0.1, 4), tokens)
            for kind, types in sensitivity.KINDS.items()
        }
        for i in range(3)
    }
    made = sensitivity.Sensitivity("nb", "ab" * 32, 12, tokens, parts, {"toolchain": "x"})
    sensitivity.write(folder / "nb.sensitivity.json", made)
    path = folder / "nb.sensitivity.json"
    value = unsealed(json.loads(path.read_text(encoding="utf-8")))
    return [Case(path, value, _sealed_file, 0.5)]


def _read_sensitivity(path: Path) -> Any:
    read = sensitivity.read(path)
    halves = sensitivity.ranking_agreement(read)
    return sensitivity.text(read), repr(halves), repr([read.sample(i, 2) for i in range(2)])


# -- records


def _records(folder: Path) -> list[Case]:
    made = _test("compare.made_up")
    text = made.Text("nb", 4, 20)
    protocol = {"name": "document", "n_ctx": 512, "overlap": 0, "divergence": "full"}
    text.write(folder / "nb.parquet", "nb", "Q4_K_M", 0.2, protocol=protocol)
    rows = [("mixeval", "nb", f"i{i}", f"c{i // 2}", float(i % 3 == 0)) for i in range(30)]
    made.items(folder / "items.parquet", rows)
    return [Case(folder / "nb.parquet"), Case(folder / "items.parquet")]


def _signed_records(folder: Path) -> list[Case]:
    cases = []
    for case in _records(folder):
        table = parquet.read(case.path)
        columns = {
            name: [list(column.names), column.codes.tolist()]
            if isinstance(column, parquet.Coded)
            else column.tolist()
            for name, column in table.columns.items()
        }
        value = {"columns": columns, "signature": table.signature}
        cases.append(Case(case.path, json.loads(json.dumps(value)), _sign, 0.0))
    return cases


def _sign(path: Path, value: Any) -> None:
    """Write records with good checksums, whatever they say."""
    if not isinstance(value, dict):
        value = {}
    raw = value.get("columns")
    columns: dict[str, Any] = {}
    for name, values in (raw if isinstance(raw, dict) else {}).items():
        try:
            if isinstance(values, list) and len(values) == 2 and isinstance(values[1], list):
                words = tuple(map(str, values[0]))
                columns[name] = parquet.Coded(np.array(values[1], np.int32), words)
            else:
                columns[name] = np.array(values)
        except (ValueError, TypeError, OverflowError):
            continue
    try:
        parquet.write(path, columns, value.get("signature"))
    except Exception:  # pyarrow does not take these columns
        path.write_bytes(b"PAR1")


def _read_records(path: Path) -> Any:
    table = parquet.read(path)
    (run,) = runs.find(path)
    notes: list[str] = []
    with _allowed(notes):
        notes += [repr(s) for s in summary.summaries([path])]
    with _allowed(notes):
        out = io.BytesIO()
        parquet.export_csv(path, out)
        notes.append(out.getvalue().hex())
    with _allowed(notes), np.errstate(all="ignore"):
        honest = path.parents[1] / "honest" / path.name
        plan = ComparisonPlan(any_size=True, n_resamples=100, margins={"kld_nats": 0.01})
        report = compare.compare_runs([path, honest], plan, (), Silent())
        notes.append(canonical_json(config.plain(compare.report_as_json(report))))
    columns = {
        name: (c.codes.tobytes(), c.names) if isinstance(c, parquet.Coded) else c.tobytes()
        for name, c in table.columns.items()
    }
    return columns, table.signature, run.kind, notes


# -- studies, reports, tasks


def _recipes(folder: Path) -> list[Case]:
    shipped = [*sorted(data_dir("recipes").glob("*.toml"))]
    return [_toml_case(folder / p.name, p.read_text(encoding="utf-8")) for p in shipped]


def _read_recipe(path: Path) -> Any:
    read = recipe.load(path)
    notes: list[str] = []
    with _allowed(notes):
        local = tuple(m for m in read.models if not recipe.is_remote(m)) or ("demo",)
        study.check(dataclasses.replace(read, models=local))
    return repr(read), notes


def _results(folder: Path) -> list[Case]:
    made = _test("report.made_up")
    cases = []
    for name, found in (
        ("study", made.study(("en", "nb"), ("Q4_K_M",), 1)),
        ("hostile", made.hostile()),
    ):
        path = folder / name / "results.json"
        path.parent.mkdir(parents=True)
        results.write(path, found)
        value = unsealed(json.loads(path.read_text(encoding="utf-8")))
        shortened = {k: v[:6] if isinstance(v, list) else v for k, v in value.items()}
        path = folder / f"{name}.json"
        results.write(path, config.build(results.Results, shortened, path))
        value = unsealed(json.loads(path.read_text(encoding="utf-8")))
        cases.append(Case(path, value, _sealed_file, 0.4))
    return cases


def _read_results(path: Path) -> Any:
    read = results.read(path)
    return html.page(read), markdown.text(read)


def _tasks(folder: Path) -> list[Case]:
    shipped = [*sorted(data_dir("tasks").glob("*.toml"))]
    return [_toml_case(folder / p.name, p.read_text(encoding="utf-8")) for p in shipped]


_ROWS = [
    {"id": f"q{i}", "instruction": f"What is {i}?", "question": f"What is {i}?", "option_a": "1",
     "option_b": "2", "option_c": "3", "option_d": str(4 + i), "answer": "ABCD"[i % 4],
     "answer_number": i, "choices": ["a", "b"], "label": 1, "prompt": "x", "target": ["y"]}
    for i in range(6)
]  # fmt: skip


def _items_of(task: definition.Definition, rows: Any) -> Any:
    language = locale.get_locale("nb")
    made, rejected = items.make_items(rows, task, language)
    asked = [prompt.generate_item(item, task, language) for item in made] if (
        task.generates()
    ) else []  # fmt: skip
    return repr(made), rejected, repr(asked)


def _read_task(path: Path) -> Any:
    task = definition.load(path)
    notes: list[str] = []
    with _allowed(notes):
        notes.append(repr(_items_of(task, _ROWS)))
    return repr(task), notes


def _task_data(folder: Path) -> list[Case]:
    lines = "".join(json.dumps(row) + "\n" for row in _ROWS)
    folder.mkdir(parents=True)
    (folder / "data.jsonl").write_text(lines, encoding="utf-8")
    header = "\t".join(_ROWS[0])
    table = "".join("\t".join(map(str, row.values())) + "\n" for row in _ROWS)
    (folder / "data.tsv").write_text(f"{header}\n{table}", encoding="utf-8")
    rows = _json_case(folder / "data.json", _ROWS)
    return [Case(folder / "data.jsonl"), Case(folder / "data.tsv"), rows]


def _read_task_data(path: Path) -> Any:
    task = definition.load(data_dir("tasks") / "m-mmlu.toml")
    found = load.rows(task, "nb", path)
    return _items_of(task, found.rows)


def _prompt_files(folder: Path) -> list[Case]:
    text = 'language = "nb"\nlicence = "CC0-1.0"\n[prompts]\na = ["Hva?", "Hvem?"]\nb = ["Når?"]\n'
    return [_toml_case(folder / "prompts.toml", text)]


def _read_prompts(path: Path) -> Any:
    read = prompts.read(path)
    return repr(read), read.by_id(), repr(prompts.texts_of(read.language))


def _locales(folder: Path) -> list[Case]:
    shipped = sorted((data_dir("tasks") / "languages").glob("*.toml"))[:6]
    return [_toml_case(folder / p.name, p.read_text(encoding="utf-8")) for p in shipped]


def _read_locale(path: Path) -> Any:
    return repr(locale._load(path))


# -- votes


def _key() -> pack.Key:
    names = {f"p{i}": f"question {i}" for i in range(20)}
    answers = [{name: f"{s if i else 'a'} {i}" for i, name in enumerate(names)} for s in "abc"]
    systems = {name: {"name": f"model-{name}", "sha256": name} for name in "abc"}
    return pack.filled(pack.Key(pack.KEY, "0", "", "r", "s", "en", systems, {}, {}), names, answers)


def _ballot() -> dict[str, Any]:
    key = _key()
    of = {(a["prompt"], a["system"]): name for name, a in key.answers.items()}
    cast = [
        {"prompt": f"p{i}", "first": of[f"p{i}", x], "second": of[f"p{i}", y], "repeat": False,
         "seconds": 9.5, "choice": (-2, -1, 0, 1, 2, None)[(i * i) % 6]}
        for i in range(1, 20) for x, y in [(("a", "b"), ("c", "a"), ("b", "c"))[i % 3]]
    ]  # fmt: skip
    return {"kind": votes.VOTES, "pack": key.pack, "rater": "0a1b", "language": "en",
            "finished": True, "votes": cast}  # fmt: skip


def _votes(folder: Path) -> list[Case]:
    return [_json_case(folder / "votes.json", _ballot())]


def _keys(folder: Path) -> list[Case]:
    path, value = folder / "key.json", config.plain(_key())
    _sealed_file(_json_case(path, value).path, value)
    case = Case(path, value, _sealed_file)
    _json_case(folder.with_name("votes.json"), _ballot())
    return [case]


def _tally(key: pack.Key, path: Path) -> Any:
    with np.errstate(all="ignore"):
        tally = votes.tally(votes.read_ballots([path], key), key, 0.1)
    return repr(tally), [votes.sentence(pair, tally) for pair in tally.pairs]


def _read_votes(path: Path) -> Any:
    return _tally(_key(), path)


def _read_key(path: Path) -> Any:
    return _tally(pack.read_key(path), path.parents[1] / "votes.json")


# -- templates

_TEMPLATES = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}"
    "{% endif %}{% for part in m.content %}{{ part.text | trim }}{% endfor %}{% endfor %}",
    "{% set ns = namespace(i=0) %}{% for m in messages %}{% set ns.i = ns.i + 1 %}"
    "{% if enable_thinking is defined and enable_thinking %}<think>{% endif %}{{ ns.i }}"
    "{{ m.content | replace('\\0', 'B') }}{% generation %}x{% endgeneration %}{% endfor %}",
    "{% macro f(n) %}{{ f(n - 1) if n > 0 }}{% endmacro %}{{ f(9) }}{{ 'x' * 9 }}"
    "{% for i in range(9) %}{{ i ** 3 }}{{ '%9d' % i }}{% endfor %}"
    "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}{{ messages | tojson }}",
)


def _templates(folder: Path) -> list[Case]:
    folder.mkdir(parents=True)
    for i, text in enumerate(_TEMPLATES):
        (folder / f"{i}.jinja").write_text(text, encoding="utf-8")
    return [Case(folder / f"{i}.jinja") for i in range(len(_TEMPLATES))]


_TEMPLATE_KEY = "tokenizer.chat_template"
_CHATS = [[{"role": "user", "content": "Hei"}], [{"role": "system", "content": "Kort"},
          {"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]]  # fmt: skip


def _read_template(path: Path) -> Any:
    text = path.read_bytes().decode("utf-8", "replace")
    scratch = path.parents[1] / "scratch"
    scratch.mkdir(exist_ok=True)
    made = _test("models.headers")
    model = made.write(scratch / "model.gguf", "llama", made.SPM, {_TEMPLATE_KEY: text or None})
    facts = resolve.facts((model,))
    found = Model("x", model, (model,), "ab" * 32, facts, "x")
    return chat_template.render(found, _CHATS, scratch, answer=True)


# -- the Hub, and endpoints


def _hub_answers(folder: Path) -> list[Case]:
    sha = "ab" * 32
    answer = {
        "_id": "0", "id": "org/repo", "modelId": "org/repo", "sha": "c" * 40, "private": False,
        "gated": False, "cardData": {"license": "mit", "language": ["nb"]}, "tags": ["gguf"],
        "downloads": 0, "likes": 0, "createdAt": "2025-01-01T00:00:00.000Z",
        "siblings": [
            {"rfilename": "x-Q8_0.gguf", "size": 64, "blobId": "d" * 40,
             "lfs": {"sha256": sha, "size": 64, "pointerSize": 134}},
            {"rfilename": "folder/README.md", "size": 12, "blobId": "e" * 40},
            {"rfilename": "config.json", "size": 2, "blobId": "f" * 40},
        ],
    }  # fmt: skip
    return [_json_case(folder / "answer.json", answer)]


def _read_hub(path: Path) -> Any:
    """Let the library have this answer, and files of whatever is asked for."""
    raw = path.read_bytes()

    def answer(request: httpx2.Request) -> httpx2.Response:
        if "/api/" in str(request.url):
            return httpx2.Response(200, content=raw, headers={"Content-Type": "application/json"})
        return httpx2.Response(206, content=b"GGUF" + bytes(60))

    close_session()
    set_client_factory(lambda: httpx2.Client(transport=httpx2.MockTransport(answer)))
    try:
        return _from_hub(path.parents[1])
    finally:
        close_session()
        set_client_factory(default_client_factory)


def _from_hub(folder: Path) -> Any:
    listing = hub_http.list_files("org/repo", "main")
    notes: list[str] = []
    with _allowed(notes):
        ref = hub_spec.HubRef("org/repo", None, "x-Q8_0.gguf")
        session = Session(Store(folder / "store"), Silent())
        hub.fetch(ref, session, None)
    with _allowed(notes):
        cached = CachedRepo(folder / "hub", "org/repo")
        hub_http.download(cached, listing.commit, listing.files, Silent())
    return listing, notes


def _endpoint_answers(folder: Path) -> list[Case]:
    answer = {
        "id": "x", "object": "chat.completion", "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {
            "role": "assistant", "content": "ja", "reasoning_content": "tenk"}, "text": "ja"}],
        "usage": {"completion_tokens": 3},
    }  # fmt: skip
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "a"}]},
             {"type": "text", "text": "b"}]  # fmt: skip
    other = {"choices": [{"finish_reason": "length", "message": {"content": parts}}], "usage": {}}
    refused = {"error": {"message": "maximum context length", "type": "x", "code": 400}}
    about = {"data": [{"id": "m", "owned_by": "vllm", "meta": {"n_ctx": 512}}],
             "chat_template": "{{ enable_thinking }}", "model_path": "m.gguf"}  # fmt: skip
    cases = {"good": answer, "parts": other, "refused": refused, "about": about}
    return [_json_case(folder / f"{name}.json", value) for name, value in cases.items()]


class _Endpoint:
    """A client of a server that answers everything alike; made once, as certificates take long."""

    status, content = 200, b""

    def __init__(self) -> None:
        def answer(_: httpx2.Request) -> httpx2.Response:
            return httpx2.Response(self.status, content=self.content)

        self.client = Client("http://127.0.0.1:9", "m", retries=0)
        self.client._http = httpx2.Client(transport=httpx2.MockTransport(answer))

    def ask(self, status: int, content: bytes) -> list[Any]:
        self.status, self.content, self.client._hopeless = status, content, 0
        for known in ("template", "has_switch"):
            vars(self.client).pop(known, None)
        item = GenerateItem("i", (("user", "q"),), 9, ("\n",))
        return [*self.client.generate([item]), self.client.about(), self.client.template]


_endpoint = functools.cache(_Endpoint)


def _read_endpoint(path: Path) -> Any:
    raw = path.read_bytes()
    seen = []
    for status in (200, 400):
        seen += (asked := _endpoint().ask(status, raw))
        answer = asked[0]
        journal = path.parents[1] / "journal.jsonl"
        with Journal(journal, Generated) as kept:
            kept.add(answer)
        seen.append(Journal(journal, Generated).get("i"))
        # as records of tasks keep it
        parquet.write(path.parents[1] / "x.parquet", {"n": np.array([answer.n_tokens])}, {"a": 1})
    return repr(seen)


# -- what the package keeps for itself


def _journals(folder: Path) -> list[Case]:
    folder.mkdir(parents=True)
    with Journal(folder / "x.jsonl", Generated) as journal:
        for i in range(6):
            journal.add(Generated(f"i{i}", "svar", i, "eos"))
    return [Case(folder / "x.jsonl")]


def _read_journal(path: Path) -> Any:
    journal = Journal(path, Generated)
    return [journal.get(f"i{i}") for i in range(6)]


def _manifests(folder: Path) -> list[Case]:
    store = Store(folder.parent / "store")
    inputs: Mapping[str, Any] = {"a": 1, "b": ["x"]}

    def build(out: Path, scratch: Path) -> Mapping[str, Any]:
        (out / "x.txt").write_bytes(b"abc")
        return {"n": 3, "size": math.pi}

    artifact = store.get("thing", "label", inputs, build)
    text = (artifact.path / "manifest.json").read_text(encoding="utf-8")
    return [_json_case(folder / "manifest.json", json.loads(text))]


def _read_manifest(path: Path) -> Any:
    store = Store(path.parents[1] / "store")
    (manifest,) = store.root.glob("thing/*/manifest.json")
    manifest.write_bytes(path.read_bytes())
    found = store.find("thing", {"a": 1, "b": ["x"]})
    every = [(a.path, a.size_bytes(), a.manifest) for a in store.artifacts()]
    like = store.like("thing", {"a": 1})
    if not (found and like):
        raise BadRecords("no artefact")
    return found.facts, every, like.fingerprint


def _known_digests(folder: Path) -> list[Case]:
    folder.mkdir(parents=True)
    (folder.parent / "hashed").write_bytes(b"abc")
    session = Session(Store(folder.parent / "digests"), Silent())
    digests.sha256_of(folder.parent / "hashed", session)
    text = (session.store.root / "sha256.json").read_text(encoding="utf-8")
    return [_json_case(folder / "sha256.json", json.loads(text))]


def _read_digests(path: Path) -> Any:
    session = Session(Store(path.parents[1] / "digests"), Silent())
    (session.store.root / "sha256.json").write_bytes(path.read_bytes())
    return digests.sha256_of(path.parents[1] / "hashed", session)


ALL: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target("gguf", _models, _read_model),
        Target("imatrix", _imatrices, _read_imatrix),
        Target("dat", _dats, _read_imatrix),
        Target("moments", _moments, _read_imatrix),
        Target("sensitivity", _sensitivities, _read_sensitivity, guarded=True),
        Target("records", _records, _read_records, guarded=True),
        Target("signed-records", _signed_records, _read_records),
        Target("recipe", _recipes, _read_recipe),
        Target("results", _results, _read_results, guarded=True),
        Target("task", _tasks, _read_task),
        Target("task-data", _task_data, _read_task_data),
        Target("locale", _locales, _read_locale),
        Target("prompts", _prompt_files, _read_prompts),
        Target("votes", _votes, _read_votes),
        Target("key", _keys, _read_key, guarded=True),
        Target("template", _templates, _read_template),
        Target("hub", _hub_answers, _read_hub),
        Target("endpoint", _endpoint_answers, _read_endpoint),
        Target("journal", _journals, _read_journal),
        Target("manifest", _manifests, _read_manifest, guarded=True),
        Target("digests", _known_digests, _read_digests),
    )
}
