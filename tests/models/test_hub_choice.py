"""Which file of a repository is meant, by the names that publishers use."""

import pytest

from imatrix_lab.core.hub_http import Listing
from imatrix_lab.errors import FetchFailed, UsageError
from imatrix_lab.models import hub_choice
from imatrix_lab.models.hub_spec import HubRef

SPLIT = [f"big/m-Q8_0-{i:05d}-of-00003.gguf" for i in (1, 2, 3)]
SEVERAL = ["tiny-Q4_K_M.gguf", "tiny-Q8_0.gguf", "old/tiny-Q8_0.gguf", *SPLIT]
BESIDE = [
    "mmproj-m-f16.gguf", "m.imatrix.gguf", "mtp-m-Q8_0.gguf", "eagle3-m-Q8_0.gguf", "README.md",
    "imatrix.dat",
]  # fmt: skip


def listing(names):
    return Listing("c", {n: {"size_bytes": 9, "sha256": None, "blob": n} for n in names})


def chosen(pattern, names, has_weights=False):
    return hub_choice.of_model(HubRef("org/x", None, pattern), listing(names), has_weights)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*Q4_K*", "tiny-Q4_K_M.gguf"),
        ("old/*", "old/tiny-Q8_0.gguf"),
        ("tiny-Q8_0.gguf", "tiny-Q8_0.gguf"),  # the exact path wins over the same name elsewhere
        ("t*4_K_M.gguf", "tiny-Q4_K_M.gguf"),
        ("TINY-q4_k_m.GGUF", "tiny-Q4_K_M.gguf"),
        ("Q4_K_M", "tiny-Q4_K_M.gguf"),
        ("q4_k_m", "tiny-Q4_K_M.gguf"),
        ("tiny-Q4_K_M", "tiny-Q4_K_M.gguf"),
    ],
)
def test_a_name_a_glob_or_a_type(pattern, expected):
    assert chosen(pattern, SEVERAL).names == (expected,)
    assert chosen(pattern, SEVERAL).why == ""


@pytest.mark.parametrize(
    "pattern", ["big/m-Q8_0-00002-of-00003.gguf", "m-Q8_0-00003-of-00003.gguf", "big/*", "Q8_0"]
)
def test_any_shard_names_all(pattern):
    assert chosen(pattern, [*SPLIT, *BESIDE]).names == tuple(SPLIT)
    with pytest.raises(FetchFailed, match="00002-of"):
        chosen(pattern, [SPLIT[0], SPLIT[2]])


def test_of_several_of_a_type_the_first_is_taken_and_said():
    choice = chosen("Q8_0", [*SEVERAL, *BESIDE])
    assert choice.names == tuple(SPLIT) and "the first of 3" in choice.why


@pytest.mark.parametrize(
    ("pattern", "names", "expected"),
    [
        ("F16", ["m-BF16.gguf", "m-F16.gguf"], "m-F16.gguf"),  # llama.cpp takes BF16
        ("Q8_0", ["Q8_0/m-00001-of-00001.gguf", "m-Q4_0.gguf"], "Q8_0/m-00001-of-00001.gguf"),
        ("UD-Q4_K_XL", ["m-Q4_K_M.gguf", "m-UD-Q4_K_XL.gguf"], "m-UD-Q4_K_XL.gguf"),
        ("Q8_0", ["m-f16.gguf", "m.Q8_0.gguf"], "m.Q8_0.gguf"),
        ("Q4_0", ["xQ4_0.gguf", "y.gguf"], "xQ4_0.gguf"),
        ("Q4_K_M", ["m-Q4_K_M-imatrix.gguf", "m-Q8_0-imatrix.gguf"], "m-Q4_K_M-imatrix.gguf"),
        ("Q8_0", ["mtp-m-Q8_0.gguf", "z-Q8_0.gguf"], "z-Q8_0.gguf"),
    ],
)
def test_types_as_publishers_write_them(pattern, names, expected):
    assert chosen(pattern, names).names == (expected,)


@pytest.mark.parametrize("name", [n for n in BESIDE if n.endswith(".gguf")])
def test_a_file_named_exactly_is_taken_whatever_its_name(name):
    assert chosen(name, [*SEVERAL, *BESIDE]).names == (name,)


@pytest.mark.parametrize(
    ("names", "expected", "said"),
    [
        (["only-Q4_0.gguf"], "only-Q4_0.gguf", ""),
        (["m-Q4_K_M.gguf", "m-F16.gguf"], "m-F16.gguf", "full precision"),
        (["m-f32.gguf", "m-f16.gguf", "m-bf16.gguf"], "m-bf16.gguf", "full precision"),
        (["BF16/m-00001-of-00001.gguf", "m-Q8_0.gguf"], "BF16/m-00001-of-00001.gguf", "full prec"),
        (["m-Q2_K.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf"], "m-Q4_K_M.gguf", "llama.cpp"),
        (["m-Q2_K.gguf", "m-Q8_0.gguf"], "m-Q8_0.gguf", "llama.cpp"),
        (["m-IQ2_S.gguf", "m-Q2_K.gguf"], "m-IQ2_S.gguf", "llama.cpp"),
        (["m-f16-Q4_0.gguf", "m-Q8_0.gguf"], "m-Q8_0.gguf", "llama.cpp"),
    ],
)
def test_without_a_name_full_precision_is_preferred(names, expected, said):
    choice = chosen(None, [*names, *BESIDE])
    assert choice.names == (expected,)
    assert said in choice.why and bool(said) == (expected in choice.why)


@pytest.mark.parametrize(
    ("pattern", "candidates"),
    [("tiny-Q8*", ["tiny-Q8_0.gguf", "old/tiny-Q8_0.gguf"]), ("*Q2_K*", SEVERAL[:3]),
     ("Q2_K", SEVERAL[:3])],
)  # fmt: skip
def test_candidates_are_listed(pattern, candidates):
    with pytest.raises(UsageError) as caught:
        chosen(pattern, [*SEVERAL, *BESIDE])
    text = str(caught.value)
    assert all(f"\n    {name}  0.0" in text for name in candidates)
    assert "00002-of" not in text and "mmproj" not in text
    fix = caught.value.fix.strip("'")
    assert chosen(fix.rpartition(":")[2], [*SEVERAL, *BESIDE]).names  # the remedy works


def test_what_may_be_no_model_is_not_guessed():
    with pytest.raises(UsageError, match="candidates") as caught:
        chosen(None, ["m-imatrix.gguf", "mmproj-x.gguf"])
    assert "m-imatrix.gguf" in str(caught.value)
    with pytest.raises(UsageError, match="no GGUF model"):
        chosen(None, ["pytorch_model.bin"])
    with pytest.raises(UsageError, match="safetensors are converted"):
        chosen("model.safetensors", ["model.safetensors", "config.json"], True)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (None, "m.imatrix.gguf"),
        ("imatrix.dat", "imatrix.dat"),
        ("*.dat", "imatrix.dat"),
        ("m-Q8_0.gguf", "m-Q8_0.gguf"),
        ("sub/odd", "sub/odd"),
    ],
)
def test_imatrices(pattern, expected):
    names = ["m.imatrix.gguf", "m-Q8_0.gguf", "sub/odd", *(["imatrix.dat"] if pattern else [])]
    ref = HubRef("org/x", None, pattern)
    assert hub_choice.of_imatrix(ref, listing(names)).names == (expected,)


@pytest.mark.parametrize(
    "name", ["imatrix_unsloth.dat", "imatrix_unsloth.gguf_file", "m.imatrix", "m-imatrix.gguf"]
)
def test_the_only_imatrix_is_found_under_publishers_names(name):
    assert hub_choice.of_imatrix(HubRef("o/x"), listing([name, "m-Q8_0.gguf"])).names == (name,)


def test_models_made_with_an_imatrix_are_not_taken_for_it():
    names = ["m-Q4_K_M-imatrix.gguf", "m-f16-imatrix.gguf", "imatrix.dat"]
    assert hub_choice.of_imatrix(HubRef("o/x"), listing(names)).names == ("imatrix.dat",)


def test_an_imatrix_is_not_guessed_among_several():
    with pytest.raises(UsageError, match="2 files match"):
        hub_choice.of_imatrix(HubRef("o/x"), listing(["imatrix.dat", "b.imatrix"]))
    with pytest.raises(UsageError, match="no file matches"):
        hub_choice.of_imatrix(HubRef("o/x", None, "none.dat"), listing(["imatrix.dat"]))
