"""Types and quantizers crossed: which files there are, and which are compared."""

import dataclasses

import pytest

from imatrix_lab.llamacpp.programs import Compute
from imatrix_lab.models import resolve
from imatrix_lab.quantize import feedback, run
from imatrix_lab.study import kinds
from imatrix_lab.study.calibrations import calibrations
from imatrix_lab.study.kinds import Kind, Quantizer
from imatrix_lab.study.recipe import CalibrationSettings
from tests.study import scored

FED, SIZED = "Q4_K_M+feedback", "size:Q4_K_M"


def recipe(types, quantizers=("imatrix", "feedback"), **changes):
    return scored.recipe(types=types, quantizers=quantizers, **changes)


def labels(*given):
    return [kind.label for kind in kinds.kinds(recipe(*given))]


def test_every_type_by_every_quantizer_in_order():
    assert labels(("Q4_K_M", SIZED)) == ["Q4_K_M", FED, SIZED, f"{SIZED}+feedback"]
    assert labels(("Q4_K_M",), ("imatrix",)) == ["Q4_K_M"]
    assert [Kind(SIZED, "feedback").id, Kind("Q4_K_M").id] == ["size-Q4_K_M+feedback", "Q4_K_M"]


def test_a_quantizer_with_a_grid_of_its_own_has_one_file(monkeypatch):
    """One entry is all that a quantizer takes."""
    own = Quantizer(lambda spec: spec, has_types=False)
    monkeypatch.setattr(kinds, "QUANTIZERS", {**kinds.QUANTIZERS, "a": own, "b": own})
    given = (("Q4_K_M", "Q3_K_S"), ("a", "imatrix", "b"))
    assert labels(*given) == ["Q4_K_M", "Q3_K_S", "a", "b"]
    assert set(kinds.contrasts(recipe(*given))) == {("b", "a")}


def test_types_are_compared_with_the_standard_type_and_the_first_quantizer():
    assert set(kinds.contrasts(recipe(("Q4_K_M", SIZED, "Q3_K_S")))) == {
        (FED, "Q4_K_M"), ("Q3_K_S+feedback", "Q3_K_S"), (SIZED, "Q4_K_M"),
        (f"{SIZED}+feedback", SIZED), (f"{SIZED}+feedback", FED), (f"{SIZED}+feedback", "Q4_K_M"),
    }  # fmt: skip
    # of a size in bytes, any type may turn out to be as large
    assert set(kinds.contrasts(recipe(("Q4_K_M", "size:3GiB", "Q3_K_S"), ("feedback",)))) == {
        ("size:3GiB+feedback", "Q4_K_M+feedback"), ("size:3GiB+feedback", "Q3_K_S+feedback"),
    }  # fmt: skip
    assert not [*kinds.contrasts(recipe(("Q4_K_M", "Q3_K_S"), ("imatrix",)))]


def test_without_a_text_there_are_plain_types_alone():
    settings = CalibrationSettings(("none", "shuffled:nb"))
    none, control = calibrations(recipe(("Q4_K_M",), calibration=settings))
    made = [kind.label for kind in kinds.kinds(recipe(("Q4_K_M", SIZED))) if kind.is_made(none)]
    assert made == ["Q4_K_M"]
    assert all(kind.is_made(control) for kind in kinds.kinds(recipe(("Q4_K_M", SIZED))))


def test_what_types_are_chosen_for():
    texts = ("nb", "nb=0.25,en=0.75", "none", "random-tokens")
    settings = CalibrationSettings(texts, samples=2, pooled=True)
    planned = calibrations(recipe(("Q4_K_M",), calibration=settings))
    weights = {
        c.id: {label: (part.id, weight) for label, (part, weight) in c.texts().items()}
        for c in planned
    }
    assert weights["nb.2"] == {"nb": ("nb.2", 1.0)}
    assert weights["nb25-en75.2"] == {"nb": ("nb.2", 0.25), "en": ("en.2", 0.75)}
    assert weights["nb-pooled"] == {"nb.1": ("nb.1", 0.5), "nb.2": ("nb.2", 0.5)}
    assert weights["random-tokens.1"] == {"random-tokens": ("random-tokens.1", 1.0)}
    assert weights["none"] == {}


def test_feedback_says_so_in_its_files(tiny):
    facts = resolve.facts((tiny,))
    model = dataclasses.replace(scored.model(), path=tiny, shards=(tiny,), facts=facts)
    spec = run.QuantSpec(model, None, "Q4_K_M", run.Options(Compute(1)), {"a": "b"})
    fed = kinds.QUANTIZERS["feedback"].applied(spec)
    assert fed.feedback and fed.metadata["a"] == "b"
    assert fed.metadata["imatrix_lab.feedback"] == feedback.metadata()["feedback"]
    assert kinds.QUANTIZERS["imatrix"].applied(spec) == spec


@pytest.mark.parametrize("name", kinds.QUANTIZERS)
def test_every_quantizer_checks_types(name):
    kinds.QUANTIZERS[name].check(("Q4_K_M", SIZED))
