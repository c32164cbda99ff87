"""Whole studies on the small model, through the command line: kills, failures, disks."""

import json
import math
import random
import re
import shutil
import signal
import subprocess

from imatrix_lab.imatrix import moments
from imatrix_lab.report import results
from tests.study.scored import EXAM
from tests.study.whole import COMMAND, ITEMS, SMALL, TASKS

KILLS = 6
KINDS = """
schema = 1
name = "kinds"
types = ["Q3_K_S", "size:Q3_K_S"]
quantizers = ["imatrix", "feedback"]
models = ["tiny-f16.gguf"]
keep = "{keep}"
[calibration]
texts = ["qaa", "qaa=0.5,qab=0.5", "none"]
tokens = 1024
[evaluation]
texts = ["qaa"]
documents = 2
ctx = 128
[comparison]
metrics = ["kld_nats"]
resamples = 100
"""


def test_a_study_from_recipe_to_report(calm):
    study = calm.load()
    labels = {"none": 0, "qaa": 2, "qab": 2, "qaa50-qab50": 2}
    quants = {(q.calibration, q.sample, q.type) for q in study.quants}
    assert quants == {
        (label.replace("none", "no imatrix"), sample, kind)
        for label, n in labels.items()
        for sample in range(1 if n else 0, n + 1)
        for kind in ("Q4_K_M", "Q2_K")
    }
    files = sorted(p.name for p in (calm.out / "scores").iterdir())
    assert len(files) == 2 * len(quants) and "qaa.tiny-qaa.1-Q2_K.parquet" in files
    assert {(c.a, c.b) for c in study.comparisons} == {
        (label, "no imatrix") for label in labels if label != "none"
    }
    assert not study.missing and not calm.quants()
    assert not (calm.out / "work").exists()
    pairs = {(p.calibration, p.sample, p.language) for p in study.predictions}
    assert ("qab", 2, "qaa") in pairs and len(study.predictions) == 2 * len(quants)
    for name in ("report.html", "report.md"):
        assert "Language qab" in (calm.out / name).read_text()
    for sentence in study.answer:
        assert sentence in calm.out_text
    merged = next(c for c in study.calibrations if c.label == "qaa50-qab50" and c.sample == 2)
    parts = [c for c in study.calibrations if c.label in ("qaa", "qab") and c.sample == 2]
    assert set(merged.merged_from) == {c.imatrix_sha256 for c in parts}
    assert str(calm.folder) not in (calm.out / results.FILE).read_text()


def test_status_says_that_it_is_done(calm):
    out, _ = calm.run("status", calm.out)
    assert out.startswith("study: done, 100 %")
    status = json.loads(calm.run("status", calm.out, "--json")[0])
    assert {step["state"] for step in status["steps"].values()} == {"done"}


def test_a_second_run_makes_nothing_again(calm):
    before = calm.same()
    when = {p: p.stat().st_mtime_ns for p in (calm.out / "steps").iterdir()}
    (calm.out / results.FILE).unlink()
    _, err = calm.run("resume", calm.out)
    assert calm.same() == before
    assert when == {p: p.stat().st_mtime_ns for p in (calm.out / "steps").iterdir()}
    assert "quantize" not in err and "imatrix" not in err and not calm.quants()


def test_another_recipe_is_refused_in_the_same_folder(calm):
    other = calm.folder / "other.toml"
    other.write_text("seed = 9\n" + calm.recipe.read_text())
    _, err = calm.run("run", other, "--out", calm.out, status=2)
    assert "seed differs" in err and "--out" in err
    _, err = calm.run("run", calm.recipe, "--out", calm.folder, status=2)
    assert "--out ANOTHER_FOLDER" in err


def test_killed_at_any_moment_then_the_same(calm, bench):
    rng, killed, n = random.Random(8), 0, 0
    ours = bench("killed-0")
    while killed < KILLS:
        process = ours.start("run", ours.recipe, "--out", ours.out)
        try:
            process.communicate(timeout=rng.uniform(0.3, 0.6) * calm.seconds)
            assert ours.same() == calm.same()
            n += 1
            ours = bench(f"killed-{n}")
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed += 1
            if killed == KILLS // 2 and (ours.out / "status.json").exists():
                assert ours.run("status", ours.out)[0].startswith("study: stopped")
    ours.study()
    assert ours.same() == calm.same() and not ours.quants()
    for path in (calm.out / "scores").iterdir():
        assert (ours.out / "scores" / path.name).read_bytes() == path.read_bytes()


def test_ctrl_c_leaves_no_program_and_the_next_run_goes_on(calm, bench):
    ours = bench("stopped")
    process = ours.start("run", ours.recipe, "--out", ours.out)
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("quantize"):
            break
    status, _ = ours.run("status", ours.out)
    assert status.startswith("study: running")
    refused = ours.study(status=2)[1]
    assert "imatrix-lab study status" in refused
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(ours.folder) not in left
    assert ours.run("status", ours.out)[0].startswith("study: stopped")
    assert "Traceback" not in rest
    times = {p: p.stat().st_mtime_ns for p in (ours.out / "steps").iterdir()}
    ours.run("resume", ours.out, "--jobs", 1)
    assert ours.same() == calm.same()
    assert all(p.stat().st_mtime_ns == when for p, when in times.items())


def test_sizes_and_quantizers_from_recipe_to_report(bench):
    ours = bench("kinds", text=KINDS, keep="all")
    out, err = ours.study()
    study = ours.load()
    plain, sized = "Q3_K_S", "size:Q3_K_S"
    fed, both = f"{plain}+feedback", f"{sized}+feedback"
    assert study.types == (plain, fed, sized, both) and not study.missing
    made = {(q.calibration, q.type): q for q in study.quants}
    tuned = ("qaa", "qaa50-qab50")
    assert made.keys() == {(c, t) for c in tuned for t in study.types} | {("no imatrix", plain)}
    assert len({q.sha256 for q in study.quants}) == len(study.quants)
    for calibration in tuned:
        for chosen, standard in ((sized, plain), (both, fed)):
            most = made[calibration, standard].size_bytes
            assert 0.99 * most < made[calibration, chosen].size_bytes <= most
        assert made[calibration, fed].quantizer == "feedback"
    # one imatrix of each text, with moments, for all files; and one sensitivity
    assert all(moments.read(path) for path in (ours.out / "imatrix").iterdir())
    assert len([*(ours.out / "sensitivity").iterdir()]) == 2
    assert {p.name for p in (ours.out / "quants").glob("*qaa.1*")} >= {
        "tiny-qaa.1-feedback-as-Q3_K_S.gguf", "tiny-qaa.1-as-Q3_K_S.types.txt",
    }  # fmt: skip
    pairs = {(c.calibration, c.a, c.b) for c in study.contrasts}
    assert {(c, fed, plain) for c in tuned} <= pairs
    known = [p for p in study.predictions if math.isfinite(p.predicted_kld_nats)]
    plain_made = {key for key, q in made.items() if q.quantizer == "imatrix"}
    assert {(p.calibration, p.type) for p in known} == plain_made
    assert {p.language for p in known} == {"qaa", "qab"}
    shown = {(t.calibration, t.type): t.roles for t in study.tensor_types}
    assert shown.keys() == plain_made
    assert len(shown["qaa", sized]["ffn_down"]) == 2 and len(shown["qaa", sized]["output"]) == 1
    assert "feedback is undecided in" in out
    page = (ours.out / "report.html").read_text()
    for title in ("Other types and quantizers", "Types of tensors", "Activations by language"):
        assert title in page
    before = ours.same()
    _, err = ours.study()
    assert ours.same() == before and "sensitivity" not in err and "quantize" not in err


def test_in_batches_disk_is_low_and_the_users_quants_stay(bench):
    """First keeping all, so that the quants are the user's; then in batches, which leave them."""
    ours = bench("kept", text=SMALL, keep="all")
    ours.study()
    assert len(list((ours.out / "quants").iterdir())) == 2
    theirs = [p for p in ours.quants() if ours.out not in p.parents]
    at_once = {p.name: p.read_bytes() for p in (ours.out / "scores").iterdir()}
    shutil.rmtree(ours.folder / "cache" / "score")
    limit = 'keep = "scores"\n[limits]\ndisk_gib = 0.001\n'
    recipe = ours.recipe.read_text().replace('keep = "all"\n', limit)
    ours.recipe.write_text(recipe)
    ours.out = ours.folder / "batches"
    _, err = ours.study()
    assert "quantize" not in err and ours.quants() == theirs
    study = ours.load()
    assert len(study.quants) == 2
    assert {p.name: p.read_bytes() for p in (ours.out / "scores").iterdir()} == at_once
    scores = sorted(p.name for p in (ours.out / "steps").glob("*.score.*"))
    assert scores == ["tiny.score.short.1.json", "tiny.score.short.2.json"]
    ours.recipe.write_text(recipe.replace(limit, f"{limit}memory_gib = 0.001\n"))
    ours.out = ours.folder / "one-in-memory"
    ours.study()
    signatures = ours.load().signatures.values()
    bounds = {s["protocol"]["divergence"].split(",")[0] for s in signatures}
    assert bounds == {"lower bound"}


def test_what_fails_stops_only_what_needs_it_and_is_mended(bench):
    """A type that takes an imatrix, a language without text, a benchmark without items."""
    text = SMALL.replace('"Q2_K"', '"IQ2_XXS"').replace("short=", 'qac", "short=')
    ours = bench("failing", text=text + TASKS)
    (ours.folder / "exam.toml").write_text(EXAM)
    (ours.folder / "exam.json").write_text(json.dumps(ITEMS))
    (ours.folder / "empty").mkdir()
    _, err = ours.study(status=1)
    study = ours.load()
    missing = {m.step: m for m in study.missing}
    quant, items = "quantize none IQ2_XXS", "items of belebele"
    assert set(missing) >= {quant, "text qac", items}
    assert missing[quant].fix and "IQ2_XXS" in missing[quant].why
    assert set(missing[quant].left_out) == {
        "predicted loss none IQ2_XXS", "exam none IQ2_XXS", "belebele none IQ2_XXS",
    }  # fmt: skip
    assert missing["text qac"].left_out == ("score qac",) and "missing: text qac" in err
    assert "belebele original" in missing[items].left_out
    assert [q.calibration for q in study.quants] == ["qaa"]
    assert {(s.text, s.task, s.calibration) for s in study.scores} == {
        ("short", "", ""), ("short", "", "qaa"), ("en", "exam", ""), ("en", "exam", "qaa"),
    }  # fmt: skip
    assert not ours.quants()
    status, _ = ours.run("status", ours.out)
    assert "3 failed" in status and missing[quant].why in " ".join(status.split())
    assert status.count("left out") == 2  # in the sum, and one row for all of them
    steps = {p.name: p.stat().st_mtime_ns for p in (ours.out / "steps").iterdir()}
    add = [
        COMMAND,
        "corpus",
        "add",
        str(ours.folder.parent / "data" / "qab.jsonl"),
        "--lang",
        "qac",
    ]
    add += ["--name", "late", "--licence", "CC0-1.0"]
    subprocess.run(add, env=ours.env, check=True, capture_output=True)
    ours.run("resume", ours.out, status=1)
    assert "qac" in {s.text for s in ours.load().scores}
    assert "text qac" not in {m.step for m in ours.load().missing}
    again = {
        p.name for p in (ours.out / "steps").iterdir() if steps.get(p.name) == p.stat().st_mtime_ns
    }
    assert again >= steps.keys() - {"tiny.quant.qaa.1.IQ2_XXS.json"}


def test_a_full_disk_is_told_and_the_next_run_goes_on(bench, small_disk):
    ours = bench("full", text=SMALL)
    ours.out = small_disk / "study"
    _, err = ours.study(status=1)
    assert re.search(r"only .* is free|the disk is full", err)
    assert "Traceback" not in err and "bug" not in err
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    ours.run("resume", ours.out)
    assert len(ours.load().quants) == 2 and not ours.load().missing
