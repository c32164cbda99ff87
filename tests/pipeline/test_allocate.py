"""Types of tensors chosen for a size: on small models, from text to files."""

import dataclasses
import json

import pytest

from imatrix_lab.cli import main
from imatrix_lab.core.manifest import MANIFEST
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.corpus import cleaned
from imatrix_lab.corpus import heldout as split
from imatrix_lab.errors import UsageError
from imatrix_lab.llamacpp import programs
from imatrix_lab.models import resolve
from imatrix_lab.models.gguf import read_header
from imatrix_lab.pipeline import allocate, deliver, plan, tune
from imatrix_lab.quantize import interactions, probes, run
from imatrix_lab.types import ComputeOptions, Request, TypeChoice
from tests.corpus import made_up


@pytest.fixture(scope="module")
def languages(tmp_path_factory):
    """A folder with Qaish and an English of our own."""
    data = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMATRIX_LAB_DATA", str(data))
        made_up.add(data, "qa", "Qaish")
        made_up.add(data, "en", "English")
    return data


@pytest.fixture(scope="module")
def store(score_store, tmp_path_factory):
    return score_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(autouse=True)
def small(languages, monkeypatch):
    monkeypatch.setenv("IMATRIX_LAB_DATA", str(languages))
    monkeypatch.setattr(split, "HELDOUT_BYTES", 12_000)
    monkeypatch.setattr(cleaned, "BASIS_BYTES", 30_000)
    for name, value in (("PIECE_TOKENS", 24), ("PIECES_MIN", 4), ("PIECES_MAX", 4)):
        monkeypatch.setattr(probes, name, value)


@pytest.fixture
def request_of(reference, tmp_path):
    def make(*types, **settings):
        compute = ComputeOptions("cpu", n_ctx=128, threads=1)
        out = tmp_path / "out"
        settings = {"text": "qa", "quick": False, **settings}
        return Request(
            types=types, model=str(reference), n_tokens=2048, out=out, compute=compute, **settings
        )

    return make


@pytest.fixture
def tuned(request_of, store):
    def make(*types, **settings):
        return tune.tune(request_of(*types, **settings), Session(store, Silent()))

    return make


def test_the_file_has_the_types_the_size_and_less_predicted_loss(tuned, request_of):
    result = tuned("size:Q4_K_M", "Q4_K_M")
    ours, standard = result.quants
    chosen = result.chosen["size:Q4_K_M"]
    assert ours.size_bytes == chosen.size_bytes <= standard.size_bytes == chosen.limit_bytes
    assert chosen.standard == "Q4_K_M" and chosen.standard_size_bytes == standard.size_bytes
    assert chosen.predicted_kld_nats["qa"] < chosen.standard_kld_nats["qa"]
    made = {t.name: t.type_name for t in read_header(ours.path).tensors}
    assert {name: made[name] for name in chosen.mix.types} == chosen.mix.types
    assert set(chosen.mix.types.values()) <= set(allocate.CPU_TYPES)
    names = [path.name for path in result.files]
    assert names == [f"{result.model.label}-qa{mix}-Q4_K_M.gguf" for mix in ("-as", "")]
    assert resolve.facts((result.files[0],)).file_type == ours.type == "size:Q4_K_M"
    kept = run.types_path(result.files[0]).read_text()
    assert kept == programs.types_file(chosen.mix.types)
    out = request_of().out
    entries = json.loads((out / "manifest.json").read_text())["files"]
    entry = entries[names[0]]
    assert entry["chosen"]["predicted_kld_nats"] == chosen.predicted_kld_nats
    assert sum(entry["chosen"]["types_by_role"]["ffn_down"].values()) == 2
    assert "SIZE=Q4_K_M" in entry["command"] and "chosen" not in entries[names[1]]


def test_sizes_in_bytes_and_bits(tuned):
    n_bytes = 1_000_000
    result = tuned(f"size:{n_bytes}B", "size:5.5bpw")
    by_bytes, by_bits = result.quants
    assert n_bytes * 0.98 < by_bytes.size_bytes <= n_bytes
    assert 5.3 < by_bits.bits_per_weight <= 5.5
    standard = result.chosen["size:5.5bpw"].standard
    assert result.files[1].name.endswith(f"-qa-5.5bpw-as-{standard}.gguf")
    assert standard in allocate.STANDARD


def test_a_dry_run_looks_for_the_files_that_a_folders_text_names(tuned, request_of, store):
    """Not for files with the folder's name."""
    request, session = request_of("size:5.5bpw"), Session(store, Silent())
    folder = tuned("size:5.5bpw").corpus.calibration.parent
    request = dataclasses.replace(request, text=str(folder), out=request.out / "of-folder")
    result = tune.tune(request, session)
    assert folder.name != "qa" and plan.plan(request, session)
    (request.out / MANIFEST).unlink()
    (request.out / deliver.CARD).unlink()
    (request.out / deliver.imatrix_name(result.model.label, "qa")).unlink()
    with pytest.raises(UsageError, match="not replaced") as raised:
        plan.plan(request, session)
    assert raised.value.where == str(result.files[0])


def test_bounds_of_roles_types_and_languages(tuned):
    free = tuned("size:Q3_K_S").chosen["size:Q3_K_S"]
    choice = TypeChoice(
        at_least=(("ffn_up", "Q5_K"),),
        types=("Q3_K", "Q5_K", "Q2_K"),
        no_worse_than=(("Q2_K", ("en",)),),
    )
    bound = tuned("size:Q3_K_S", choice=choice, force=True).chosen["size:Q3_K_S"]
    assert set(bound.mix.types.values()) <= {"Q2_K", "Q3_K", "Q5_K"}
    ups = {t for name, t in bound.mix.types.items() if "ffn_up" in name}
    assert ups == {"Q5_K"}
    assert set(bound.predicted_kld_nats) == {"qa", "en"} and bound.weights == {"qa": 1.0}
    assert bound.predicted_kld_nats["qa"] >= free.predicted_kld_nats["qa"] * (1 - 1e-3)


def test_a_choice_that_loses_much_is_measured_and_corrected(tuned, monkeypatch):
    size = "size:Q3_K_S"
    first = tuned(size).chosen[size]
    monkeypatch.setattr(interactions, "ADDITIVE_NATS", 0.0)
    measure, seen = interactions.together, {}

    def watching(probing, types, *rest):
        found = measure(probing, types, *rest)
        seen[tuple(sorted(types.items()))] = found.kld_nats
        return found

    monkeypatch.setattr(interactions, "together", watching)
    chosen = tuned(size, force=True).chosen[size]
    reached = next(iter(seen))
    of = {name: kld for name, kld in chosen.mix.types.items() if name in dict(reached)}
    told = chosen.predicted_kld_nats["qa"]
    assert told == seen[tuple(sorted(of.items()))] == min(list(seen.values())[:2])
    assert chosen.standard_kld_nats["qa"] == list(seen.values())[-1]
    assert chosen.size_bytes <= chosen.limit_bytes == first.limit_bytes


def test_a_language_measured_before_is_predicted_and_changes_nothing(tuned):
    only = tuned("size:Q5_K_S").chosen["size:Q5_K_S"]
    tuned("size:Q5_K_M", choice=TypeChoice(languages=(("en", 1.0),)))
    both = tuned("size:Q5_K_S").chosen["size:Q5_K_S"]
    assert "qa" in only.predicted_kld_nats and set(both.predicted_kld_nats) == {"qa", "en"}
    assert both.mix == only.mix and both.weights == {"qa": 1.0}


def test_of_a_model_that_is_quantized_already(tuned, request_of, store, tmp_path):
    model = tuned("Q8_0").files[0]
    request = dataclasses.replace(
        request_of("size:Q4_K_M", allow_requantize=True), model=str(model), out=tmp_path / "again"
    )
    (quant,) = tune.tune(request, Session(store, Silent())).quants
    types = {t.type_name for t in read_header(quant.path).tensors}
    assert types <= {*allocate.CPU_TYPES, "F32"} and len(types) > 2


def test_for_another_language(tuned):
    choice = TypeChoice(languages=(("en", 1.0), ("qa", 0.25)))
    result = tuned("size:Q3_K_M", choice=choice)
    assert result.imatrix.language == "qa"
    metadata = read_header(result.files[0]).metadata
    assert metadata["imatrix_lab.size.for"] == "en=1,qa=0.25"
    assert metadata["imatrix_lab.size"] == "Q3_K_M"


@pytest.mark.parametrize(
    ("types", "choice", "told"),
    [
        (["size:3KB"], {}, "a size from"),
        (["size:1GiB"], {}, "a size from"),
        (["size:0.5bpw"], {}, "a size from"),
        (["size:F16"], {}, "--size"),
        (["Q4_K_M"], {"languages": (("en", 1.0),)}, "--size"),
        (["size:Q4_K_M"], {"at_least": (("ffn_donw", "Q5_K"),)}, "ffn_down"),
        (["size:Q4_K_M"], {"at_least": (("ffn_down", "Q5_K_M"),)}, "Q5_K"),
        (["size:Q4_K_M"], {"types": ("Q4_K_M",)}, "Q4_K"),
        (["size:2.5bpw"], {"types": ("Q4_K", "Q5_K")}, "other types"),
    ],
)
def test_what_cannot_be_is_told_before_any_work(
    types, choice, told, request_of, store, monkeypatch
):
    monkeypatch.setattr(tune, "prepare", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(UsageError) as error:
        tune.tune(request_of(*types, choice=TypeChoice(**choice)), Session(store, Silent()))
    assert told in error.value.fix


def test_predictions_and_sizes_of_standard_types_are_those_of_their_files(tuned):
    result = tuned("size:Q3_K_M", "Q3_K_M")
    assert result.chosen["size:Q3_K_M"].standard_size_bytes == result.quants[1].size_bytes


def test_the_command_quantize(request_of, tuned, store, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("IMATRIX_LAB_CACHE", str(store.root))
    tuned("Q8_0")
    imatrix = next(request_of().out.glob("*.imatrix.gguf"))
    words = ["quantize", "--model", request_of().model, "--imatrix", str(imatrix), "--threads", "1"]
    words += ["--size", "Q4_K_S", "--bits", "6", "--at-least", "output=q6_k"]
    words += ["--out", str(tmp_path / "quants"), "--ctx", "128", "--json"]
    assert main.run(words) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert [name.rpartition("-qa-")[2] for name in files] == [
        "as-Q4_K_S.gguf", f"6bpw-as-{files[1].rpartition('-')[2]}",
    ]  # fmt: skip
    for name in files:
        types = {t.name: t.type_name for t in read_header(tmp_path / "quants" / name).tensors}
        assert types["output.weight"] in ("Q6_K", "Q8_0")
        assert "--at-least output=Q6_K" in (tmp_path / "quants" / "README.md").read_text()
