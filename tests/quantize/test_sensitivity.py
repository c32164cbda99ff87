"""Probes of a real model in memory, against files that are written and scored."""

import dataclasses
import itertools
import json
import shutil
from collections import Counter

import numpy as np
import pytest

from imatrix_lab.cli import main as cli_main
from imatrix_lab.core import process
from imatrix_lab.core.files import sealed_json, unsealed
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import BadModel, BadRecords, BadText, ImatrixLabError, UsageError
from imatrix_lab.imatrix import format
from imatrix_lab.llamacpp import ggml
from imatrix_lab.models import weights
from imatrix_lab.models.resolve import resolve
from imatrix_lab.pipeline import sensitivity as stage
from imatrix_lab.quantize import errors, interactions, plots, probes, sensitivity
from imatrix_lab.quantize.sensitivity import Sensitivity, coefficient
from imatrix_lab.score import run
from imatrix_lab.score.checkpoint import Checkpoint
from imatrix_lab.score.engine import Engine
from imatrix_lab.score.text import Batches
from imatrix_lab.score.windows import Protocol, batches
from imatrix_lab.types import ComputeOptions, Request
from tests import tiny_model
from tests.score import made

GROUP, PROTOCOL = "ffn_down.1", Protocol("document", 64, 16)


@pytest.fixture(autouse=True)
def few_pieces(monkeypatch):
    """Six short pieces of text at most, four at first."""
    for name, value in (("PIECE_TOKENS", 24), ("PIECES_MIN", 4), ("PIECES_MAX", 6)):
        monkeypatch.setattr(probes, name, value)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "nb.txt"
    path.write_text("\n\n".join(made.prose(200, i) for i in range(12)))
    return path


@pytest.fixture
def store(score_store, tmp_path):
    return score_store(tmp_path / "store")


@pytest.fixture
def seen(monkeypatch):
    """What was probed."""
    probings, measure = [], probes.measure

    def watching(probing, *rest):
        probings.append(probing)
        return measure(probing, *rest)

    monkeypatch.setattr(probes, "measure", watching)
    return probings


def request(model, text, **rest):
    compute = ComputeOptions("cpu", threads=1, n_ctx=64)
    return Request(str(text), (), str(model), 4096, out=None, compute=compute, **rest)


def build(model, text, store, tmp_path, **rest):
    """Measure and read the file."""
    progress = rest.pop("progress", Silent())
    path = stage.build(request(model, text), None, tmp_path / "x.json", Session(store, progress))
    return sensitivity.read(path)


def written(tools, model, imatrix, names, folder):
    """A copy of a model in which some tensors are what Q3_K makes of them."""
    library, path = ggml.load(tools), folder / "changed.gguf"
    shutil.copyfile(model.path, path)
    with path.open("r+b") as file:
        for name in names:
            tensor = weights.tensors(model)[name]
            rows = weights.read_rows(library, tensor, 0, weights.n_rows(tensor.info))
            by_column = errors.importance_of(imatrix, name, tensor.info)[0]
            quantized = library.quantize(rows, "Q3_K", by_column)
            changed = library.dequantize(quantized, "Q3_K")
            file.seek(tensor.info.offset)
            file.write(library.quantize(changed, tensor.info.type_name, None).tobytes())
    return path


def test_a_probe_in_memory_is_a_file_with_the_same_tensors_scored(
    reference, text, tools, kernel, store, tmp_path, seen
):
    measured = build(reference, text, store, tmp_path)
    session, group = Session(store, Silent()), measured.coefficients[GROUP]["scale"]
    model = resolve(str(reference), session)
    imatrix = format.read(next(store.root.glob("imatrix/*/imatrix.gguf")))
    quant = written(tools, model, imatrix, ["blk.1.ffn_down.weight"], tmp_path)
    probing = seen[0]
    plan = Batches(tuple(batches(probing.windows[:4], probing.settings.n_ctx, 2)), {}, 0)
    job = made.job(tools, kernel, model, made.documents([50]), PROTOCOL)
    job = dataclasses.replace(job, plan=plan, settings=probing.settings)
    rows = Checkpoint(tmp_path, plan.sizes())
    run.decode_together(job, [made.load(quant, store)], [rows], Silent())
    klds = [piece.mean() for piece in np.split(rows.all()["kld"], np.cumsum(measured.tokens)[:-1])]
    assert group.type == "Q3_K"
    assert np.allclose(klds, group.kld_nats, rtol=1e-5)
    assert group.kld_nats_per_error == pytest.approx(np.mean(klds) / group.error, rel=1e-2)


def test_a_group_together_with_none_is_its_probe_and_put_back_nothing(
    reference, text, store, tmp_path, seen
):
    measured = build(reference, text, store, tmp_path)
    (probing,), group = seen, measured.coefficients[GROUP]["scale"]
    session, types = Session(store, Silent()), dict.fromkeys(probing.groups()[GROUP], "Q3_K")
    both = [interactions.together(probing, types, measured, session, apart) for apart in (True, 0)]
    for together in both:
        assert together.kld_nats == pytest.approx(np.mean(group.kld_nats), rel=1e-6)
    assert both[0].without == {GROUP: 0.0} and not both[1].without


def test_more_groups_lose_more_and_each_part_counts(reference, text, store, tmp_path, seen):
    measured = build(reference, text, store, tmp_path)
    (probing,), session = seen, Session(store, Silent())
    groups = probing.groups()
    two = {n: "Q2_K" for g in (GROUP, "attn_v.0") for n in groups[g]}
    together = interactions.together(probing, two, measured, session, True)
    assert set(together.without) == {GROUP, "attn_v.0"}
    assert all(0 < kld < together.kld_nats for kld in together.without.values())
    halves = {g: together.kld_nats - kld for g, kld in together.without.items()}
    assert together.factors(halves) == pytest.approx(dict.fromkeys(halves, 1.0))
    tiny = {g: nats / 100 for g, nats in halves.items()}
    assert together.factors(tiny) == dict.fromkeys(halves, interactions.FACTOR_MAX)


def test_what_is_restored_diverges_by_exactly_zero(reference, text, store, tmp_path, monkeypatch):
    def and_back(self, engine, types):
        for name in types:
            engine.replace(name, lambda rows, matrix: 2 * rows)
            engine.restore(name)

    monkeypatch.setattr(probes.Run, "replace", and_back)
    with pytest.raises(BadModel):
        build(reference, text, store, tmp_path)
    kept = [json.loads(p.read_bytes()) for p in store.root.glob("work/*/scratch/probe-*.json")]
    assert len(kept) == 32
    assert all(probe["kld_nats"] == [0.0] * 4 for probe in kept)


def test_a_killed_run_goes_on_with_the_probes_it_had(reference, text, store, tmp_path, monkeypatch):
    whole = build(reference, text, store, tmp_path / "whole")
    for path in store.root.glob("sensitivity/*"):
        shutil.rmtree(path)
    decode, calls = Engine.decode, []

    def counting(self, step):
        calls.append(len(step.tokens))
        if len(calls) == 9:
            raise KeyboardInterrupt
        return decode(self, step)

    monkeypatch.setattr(Engine, "decode", counting)
    with pytest.raises(KeyboardInterrupt):
        build(reference, text, store, tmp_path / "again")
    assert build(reference, text, store, tmp_path / "again") == whole
    n_decodes = len(calls)
    assert build(reference, text, store, tmp_path / "third") == whole
    assert len(calls) == n_decodes  # from the store
    # the full model's two batches and three probes were not read again
    assert n_decodes < 9 + 2 * 33 - 6


def test_what_parts_have_probed_is_not_probed_again(reference, text, store, tmp_path, monkeypatch):
    """Two of three parts: the rest is the step's, and the text that is added."""
    monkeypatch.setattr(probes, "AGREEMENT", 1.01)
    whole = build(reference, text, store, tmp_path / "whole")
    for path in store.root.glob("sensitivity/*"):
        shutil.rmtree(path)
    probed, probe, every = Counter(), probes.Run._probe, probes.sensitivity_of

    def counting(self, engine, key, found, missing, advance):
        probed.update((key, batch) for batch in missing)
        probe(self, engine, key, found, missing, advance)

    def in_parts(*arguments):
        *most, session = arguments
        parts = (0, 3), (2, 3), (0, 3)
        files = {probes.some_probes(*most, part, session) for part in parts}
        assert len(probed) == 2 * 21 and len(files) == 2
        return every(*arguments, files)

    monkeypatch.setattr(probes.Run, "_probe", counting)
    monkeypatch.setattr(probes, "sensitivity_of", in_parts)
    assert build(reference, text, store, tmp_path / "parts") == whole
    assert len(probed) == 3 * 32 and {*probed.values()} == {1}


def test_text_is_added_until_two_halves_agree(reference, text, store, tmp_path, monkeypatch):
    monkeypatch.setattr(probes, "AGREEMENT", 1.01)
    progress = made.Recorder()
    measured = build(reference, text, store, tmp_path, progress=progress)
    assert len(measured.tokens) == 6
    assert all(len(c.kld_nats) == 6 for c in measured.flat().values())
    assert any("to 144 tokens" in line or "to 138 tokens" in line for line in progress.said)


def test_a_probe_that_is_too_strong_takes_a_finer_type(
    reference, text, store, tmp_path, monkeypatch
):
    coarse = build(reference, text, store, tmp_path / "coarse").coefficients[GROUP]["scale"]
    monkeypatch.setattr(probes, "KLD_MAX", np.mean(coarse.kld_nats) * 0.9)
    fine = build(reference, text, store, tmp_path / "fine").coefficients[GROUP]["scale"]
    assert (coarse.type, fine.type) == sensitivity.KINDS["scale"]
    assert fine.error < coarse.error
    ratio = fine.kld_nats_per_error / coarse.kld_nats_per_error
    assert 0.5 < ratio < 2  # divergence is in proportion to the error


def test_parts_of_a_split_model_and_quantized_weights_are_probed_alike(
    tools, text, store, tmp_path
):
    whole = tiny_model.write(tmp_path / "whole-f16.gguf", output_scale=0.25, feed_forward=4096)
    parts = tmp_path / "parts-f16"
    argv = [tools.program("llama-gguf-split"), "--split-max-size", "8M", whole, parts]
    process.run(argv, timeout_s=60)
    first = next(tmp_path.glob("parts-f16-00001-of-*.gguf"))
    one, split = (build(m, text, store, tmp_path / m.stem) for m in (whole, first))
    values = [{key: c.kld_nats for key, c in s.flat().items()} for s in (one, split)]
    assert values[0] == values[1] and len(values[0]) == 32
    quantized = tmp_path / "whole-Q8_0.gguf"
    process.run([tools.program("llama-quantize"), whole, quantized, "Q8_0", "1"], timeout_s=60)
    q8_0 = build(quantized, text, store, tmp_path / "q8_0")
    for key in itertools.product(("token_embd", "output", GROUP), sensitivity.KINDS):
        values = [s.flat()[key].kld_nats_per_error for s in (one, q8_0)]
        assert values[0] == pytest.approx(values[1], rel=0.2), key


def test_experts_are_a_role_and_rows_off_256_take_a_32_wide_type(tools, text, store, tmp_path):
    model = tiny_model.write(
        tmp_path / "moe-f16.gguf", experts=4, feed_forward=288, output_scale=0.25
    )
    measured = build(model, text, store, tmp_path)
    assert {"ffn_down_exps.0", "ffn_up_exps.1", "token_embd", "output"} <= set(
        measured.coefficients
    )
    down = measured.coefficients["ffn_down_exps.0"]  # 288 columns: Q4_0 and Q4_1
    up = measured.coefficients["ffn_up_exps.0"]
    assert down["scale"].error < up["scale"].error / 2
    assert 0.5 < down["scale and minimum"].error / up["scale and minimum"].error < 2


# -- the file


def made_up(language="nb", scale=1.0, tokens=(10, 20, 30, 20)):
    rng = np.random.default_rng(0)
    groups = ["token_embd", "attn_q.0", "attn_q.1", "ffn_down.0"]
    coefficients = {
        group: {
            kind: coefficient(types[0], 0.1, scale * rng.uniform(0.5, 1, len(tokens)), tokens)
            for kind, types in sensitivity.KINDS.items()
        }
        for group in groups
    }
    return Sensitivity(language, "abc", 2, tokens, coefficients, {"version": [1, 1]})


def test_a_file_reads_as_it_was_written(tmp_path):
    sensitivity.write(tmp_path / "nb.json", made_up())
    assert sensitivity.read(tmp_path / "nb.json") == made_up()


def broken(change):
    raw = unsealed(json.loads(sensitivity.text(made_up())))
    change(raw)
    return sealed_json(raw)


def one_of(raw):
    return raw["coefficients"]["token_embd"]["scale"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "GGUF",
        broken(lambda raw: raw.update(version=99)),
        broken(lambda raw: raw.update(coefficients={})),
        broken(lambda raw: raw.update(tokens=[])),
        broken(lambda raw: raw.pop("model_sha256")),
        broken(lambda raw: one_of(raw).update(error=0)),
        broken(lambda raw: one_of(raw).update(kld_nats=[1])),
        broken(lambda raw: one_of(raw).update(kld_nats=[1, 2, 3, None])),
        broken(lambda raw: one_of(raw).update(kld_nats_per_error=5)),
        broken(lambda raw: raw["coefficients"]["token_embd"].pop("scale")),
        broken(lambda raw: raw.update(coefficients=[1])),
    ],
)
def test_other_and_damaged_files_are_refused(tmp_path, content):
    path = tmp_path / "nb.json"
    path.write_text(content)
    with pytest.raises(BadRecords) as error:
        sensitivity.read(path)
    assert error.value.where == str(path) and error.value.fix


@pytest.mark.parametrize("value", ["1e999", "[" * 100_000, "1" + "0" * 400])
def test_impossible_numbers_are_refused(tmp_path, value):
    path = tmp_path / "nb.json"
    path.write_text(sensitivity.text(made_up()).replace('"n_layers": 2', f'"n_layers": {value}'))
    with pytest.raises(BadRecords):
        sensitivity.read(path)


def test_no_changed_digit_gives_other_numbers(tmp_path):
    text, path = sensitivity.text(made_up()), tmp_path / "nb.json"
    for place in (i for i, c in enumerate(text) if c.isdigit()):
        path.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
        try:
            assert sensitivity.read(path) == made_up()
        except BadRecords:
            continue


def test_groups_are_roles_in_bands_of_depth():
    assert sensitivity.group_of("blk.0.attn_q.weight", 18) == "attn_q.0"
    assert sensitivity.group_of("blk.17.attn_q.weight", 18) == "attn_q.2"
    assert sensitivity.group_of("token_embd.weight", 18) == "token_embd"
    assert sensitivity.group_of("output.weight", 18) == "output"
    assert sensitivity.group_of("blk.79.ffn_down_exps.weight", 80) == "ffn_down_exps.9"
    assert sensitivity.group_of("blk.80.attn_q.weight", 80) == "attn_q.9"  # beyond: MTP
    for n_layers in (1, 2, 3, 20, 21, 80):
        bands = [sensitivity.group_of(f"blk.{i}.x.weight", n_layers) for i in range(n_layers)]
        assert sorted(set(bands)) == sorted(f"x.{b}" for b in range(sensitivity.n_bands(n_layers)))


def test_an_outlier_is_a_group_of_its_own():
    whole = made_up()
    alone = {"blk.1.attn_q": dict(whole.coefficients["attn_q.0"])}
    whole = dataclasses.replace(whole, coefficients={**whole.coefficients, **alone})
    of = whole.of("blk.1.attn_q.weight", "Q2_K")
    assert of == whole.coefficients["attn_q.0"]["scale and minimum"]
    assert whole.of("blk.0.attn_q.weight", "IQ4_XS") == whole.coefficients["attn_q.0"]["scale"]
    assert whole.has("blk.1.attn_q.weight") and not whole.has("blk.1.attn_v.weight")
    with pytest.raises(KeyError):
        whole.of("blk.1.attn_v.weight", "Q4_K")


def test_outliers_have_far_smaller_errors_than_others_of_their_role():
    errors = {f"blk.{i}.ffn_down.weight": 0.004 + 0.0005 * i for i in range(6)}
    assert not sensitivity.outliers(errors)
    errors |= {f"blk.{i}.attn_q.weight": 0.001 for i in range(6)} | {"token_embd.weight": 1e-5}
    assert not sensitivity.outliers(errors)
    errors["blk.3.ffn_down.weight"] = 1e-5
    assert sensitivity.outliers(errors) == ["blk.3.ffn_down.weight"]


def test_types_that_llama_quantize_falls_back_to_are_probed_by_their_kind():
    assert [probes._actual(t, 288) for t in ("Q3_K", "IQ4_XS", "Q4_K", "Q5_K")] == [
        "Q4_0", "IQ4_NL", "Q4_1", "Q5_1",
    ]  # fmt: skip
    for kind, rungs in sensitivity.KINDS.items():
        taken = {probes._actual(t, n_columns) for t in rungs for n_columns in (256, 32)}
        assert set(map(sensitivity.kind_of, taken)) == {kind}


def test_samples_share_no_text_and_together_are_the_whole():
    whole = made_up()
    halves = [whole.sample(k, 2) for k in (0, 1)]
    assert [h.tokens for h in halves] == [(10, 30), (20, 20)]
    for key, c in whole.flat().items():
        means = [h.flat()[key].kld_nats_per_error for h in halves]
        assert np.average(means, weights=[40, 40]) == pytest.approx(c.kld_nats_per_error)
        assert c.ci95_low < c.kld_nats_per_error < c.ci95_high


def test_correlation_is_of_ranks():
    assert sensitivity.correlation(made_up(), made_up("en", 7.0)) == pytest.approx(1)


# -- what is refused before any work


def test_errors_come_before_llama_cpp_is_looked_for(reference, text, tmp_path, monkeypatch):
    session = Session(Store(tmp_path / "empty"), Silent())
    with pytest.raises(BadModel):
        stage.build(request(tmp_path / "none.gguf", text), None, None, session)
    with pytest.raises(UsageError):
        stage.build(request(reference, text), None, text, session)
    monkeypatch.setattr(probes, "memory_bytes", lambda: 1000)
    with pytest.raises(ImatrixLabError) as error:
        stage.build(request(reference, text), None, None, session)
    assert error.value.fix
    assert not (tmp_path / "empty" / "toolchain").exists()


def test_one_paragraph_is_no_sample(reference, store, tmp_path):
    path = tmp_path / "one.txt"
    path.write_text(made.prose(400))
    with pytest.raises(BadText):
        build(reference, path, store, tmp_path)


def test_another_models_coefficients_are_refused(reference, store):
    with pytest.raises(UsageError):
        sensitivity.require_model([made_up()], made.load(reference, store))


# -- shown


def test_show_prints_languages_side_by_side_and_plots_them(tmp_path, capsys):
    for language, scale in (("nb", 1.0), ("en", 0.5)):
        sensitivity.write(tmp_path / f"{language}.json", made_up(language, scale))
    files = [str(tmp_path / f"{language}.json") for language in ("nb", "en")]
    plot = tmp_path / "both.svg"
    assert cli_main.run(["sensitivity", "show", *files, "--plot", str(plot)]) == 0
    out, _ = capsys.readouterr()
    assert "nb" in out and "en" in out and "attn_q.1" in out
    picture = plot.read_text()
    assert all(word in picture for word in ("nb", "en", "attn_q", "ffn_down", "token_embd"))
    assert cli_main.run(["sensitivity", "show", *files, "--plot", files[0]]) == 2
    assert cli_main.run(["sensitivity", "show", files[0], "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr()[0])
    assert one_of(shown)["n_tokens"] == 80
    assert plots.panels([made_up()])["attn_q"] == ["attn_q.0", "attn_q.1"]
