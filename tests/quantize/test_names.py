"""Names of files as other programs read them."""

import re

import pytest

from imatrix_lab.core import process
from imatrix_lab.imatrix.format import Imatrix
from imatrix_lab.llamacpp import programs, server
from imatrix_lab.pipeline import deliver, tune
from imatrix_lab.quantize.run import calibration, file_name

NOT_MODELS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
"""In llama.cpp's ``gguf_filename_is_model``."""


def tag(name):
    """The type that llama.cpp's ``-hf`` takes from a name (``get_gguf_split_info``)."""
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", name.removesuffix(".gguf"))
    return re.search(r"[-.]([A-Z0-9_]+)$", stem, re.IGNORECASE)[1].upper()


def label(name):
    """The type that the Hub shows: the last that is in the name (``parseGGUFQuantLabel``)."""
    types = "|".join(sorted(programs.QUANT_TYPES, reverse=True))
    return [match[0] for match in re.finditer(types, name.upper())][-1]


def is_model(name):
    return not any(word in name for word in NOT_MODELS)


@pytest.mark.parametrize("quant_type", [*programs.QUANT_TYPES, "size:Q4_K_M", "size:3.5GiB"])
@pytest.mark.parametrize("shard", ["", "-00002-of-00011"])
def test_the_type_is_where_programs_look_for_it(quant_type, shard):
    base = quant_type.removeprefix("size:").replace("3.5GiB", "Q3_K_S")
    for language in ("nb", "nb75-en25", calibration("nb", awq=True, feedback=True), ""):
        name = file_name("Some-Model-8B-Q8-v1.0", language, quant_type, base)
        name = name.replace(".gguf", f"{shard}.gguf")
        assert tag(name) == label(name) == base and is_model(name)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("nb.imatrix.gguf", "nb"),
        ("imatrix.dat", "own"),
        ("Model-8B_iMatrix.gguf", "Model-8B"),
        ("imatrix-mixed.gguf", "mixed"),
    ],
)
def test_a_quant_is_not_taken_for_an_imatrix(file, expected, tmp_path):
    named = tune.label_of(Imatrix({}, (), 0, 0), tmp_path / file)
    assert named == expected and is_model(file_name("m", named, "Q4_K_M"))


@pytest.mark.parametrize(
    ("tag", "expected"),
    [("", "t-nb-Q4_K_M"), (":iq2_xs", "t-nb-IQ2_XS"), (":Q4_K_S", "t-nb-1MiB-as-Q4_K_S")],
)
def test_llama_server_finds_a_file_by_its_type(tools, tiny, tag, expected, tmp_path):
    """As the Hub's cache has a repository, with what is published beside quants."""
    sha = "0" * 40
    folder = tmp_path / "hub" / "models--user--t-nb-GGUF"
    snapshot = folder / "snapshots" / sha
    for path in (folder / "refs", folder / "blobs", snapshot):
        path.mkdir(parents=True)
    (folder / "refs" / "main").write_text(sha)
    (folder / "blobs" / "x").symlink_to(tiny)
    names = [file_name("t", "nb", t, "Q4_K_S") for t in ("Q4_K_M", "IQ2_XS", "size:1MiB")]
    for name in (*names, deliver.imatrix_name("t", "nb", True), deliver.imatrix_name("t", "nb")):
        (snapshot / name).symlink_to("../../blobs/x")
    argv = [tools.program("llama-server"), "--offline", "-hf", f"user/t-nb-GGUF{tag}"]
    argv += ["--port", "0", "-c", "64", "-t", "1", "-v"]
    log = tmp_path / "log"
    with process.background(argv, log=log, env={"HF_HOME": str(tmp_path)}) as running:
        server.port_of(running)
    assert f"/{expected}.gguf'" in log.read_text()


def test_an_imatrix_is_not_taken_for_a_model():
    assert not any(is_model(deliver.imatrix_name("m", "nb", moments)) for moments in (True, False))
