"""What may be compared, and that it is the same tokens."""

import numpy as np
import pytest

from imatrix_lab.errors import BadRecords, UsageError
from imatrix_lab.records import runs
from tests.compare.made_up import TOOLCHAIN, Text, coded, items


@pytest.fixture
def text():
    return Text("nb", n_documents=14, tokens=30)


def both(a, b, metrics=("kld_nats",)):
    members = {0: runs.find(a)[0], 1: runs.find(b)[0]}
    return runs.blocks(members, metrics)


def test_a_run_says_what_it_is(tmp_path, text):
    run = runs.find(text.write(tmp_path / "x.parquet", "nb", "Q4_K_M", sample="3"))[0]
    assert (run.kind, run.calib, run.type, run.text) == ("token", "nb", "Q4_K_M", "nb")
    assert run.sample == "imatrix-nb-3"
    assert run.name() == "nb Q4_K_M"
    assert not run.is_reference()
    plain = runs.find(text.write(tmp_path / "y.parquet", "", "Q4_K_M"))[0]
    assert (plain.calib, plain.sample) == (runs.NO_IMATRIX, "")


def test_a_folder_is_its_files(tmp_path, text):
    for calib in ("nb", "en"):
        text.write(tmp_path / "runs" / f"{calib}.parquet", calib, "Q4_K_M")
    assert [r.calib for r in runs.find(tmp_path / "runs")] == ["en", "nb"]
    (tmp_path / "empty").mkdir()
    for name in ("empty", "nothing"):
        with pytest.raises(BadRecords) as caught:
            runs.find(tmp_path / name)
        assert caught.value.where == str(tmp_path / name)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("toolchain.backend", {"toolchain": {**TOOLCHAIN, "backend": "cuda"}}),
        ("toolchain.commit", {"toolchain": {**TOOLCHAIN, "commit": "other"}}),
        ("metrics_version", {"metrics_version": 2}),
        ("protocol.n_ctx", {"protocol": {"name": "sliding", "n_ctx": 1024, "overlap": 256}}),
        (
            "reference.sha256",
            {"reference": {"sha256": "x", "name": "demo-f16.gguf", "type": "F16"}},
        ),
        ("text.sha256", {"text": {"label": "nb", "sha256": "x", "n_documents": 14}}),
    ],
)
def test_what_differs_is_named(tmp_path, text, field, value):
    a = text.write(tmp_path / "a.parquet", "nb", "Q4_K_M")
    b = text.write(tmp_path / "b.parquet", "en", "Q4_K_M", **value)
    with pytest.raises(BadRecords) as caught:
        both(a, b)
    assert f"{field} is" in caught.value.what and caught.value.where == str(b)


@pytest.mark.parametrize("field", ["n_batch", "gpu_layers"])
def test_what_changes_bits_must_agree(tmp_path, text, field):
    a = text.write(tmp_path / "a.parquet", "nb", "Q4_K_M")
    compute = {"threads": 2, "n_batch": 512, "gpu_layers": 0, field: 99}
    b = text.write(tmp_path / "b.parquet", "en", "Q4_K_M", compute=compute)
    with pytest.raises(BadRecords) as caught:
        both(a, b)
    assert f"compute.{field} is" in caught.value.what


def test_threads_may_differ(tmp_path, text):
    a = text.write(tmp_path / "a.parquet", "nb", "Q4_K_M")
    compute = {"threads": 16, "n_batch": 512, "gpu_layers": 0}
    b = text.write(tmp_path / "b.parquet", "en", "Q4_K_M", compute=compute)
    (block,) = both(a, b, ("kld_nats", "top1_agreement"))
    assert block.values[0]["kld_nats"].shape == block.codes.shape == block.windows.shape
    assert set(np.unique(block.values[1]["top1_agreement"])) == {0, 1}
    assert (block.title(), len(block.names)) == ("nb", 14)


def test_other_tokens_are_refused(tmp_path, text):
    a = text.write(tmp_path / "a.parquet", "nb", "Q4_K_M")
    n = len(text.codes)
    b = text.write(tmp_path / "b.parquet", "en", "Q4_K_M", columns={"token": np.zeros(n, np.int32)})
    with pytest.raises(BadRecords) as caught:
        both(a, b)
    assert caught.value.where == str(b)


def test_documents_may_be_coded_in_another_order(tmp_path, text):
    a = text.write(tmp_path / "a.parquet", "nb", "Q4_K_M")
    words = [f"nb/{c}" for c in text.codes]
    names = tuple(sorted(set(words), reverse=True))
    place = {name: i for i, name in enumerate(names)}
    other = runs.parquet.Coded(np.array([place[w] for w in words], np.int32), names)
    b = text.write(tmp_path / "b.parquet", "en", "Q4_K_M", columns={"doc_id": other})
    (block,) = both(a, b)
    assert block.names == tuple(f"nb/{i}" for i in range(14))
    (turned,) = both(b, a)
    assert turned.names == block.names
    np.testing.assert_array_equal(turned.codes, block.codes)


def test_records_that_are_not_ours(tmp_path, text):
    path = text.write(tmp_path / "a.parquet", "nb", "Q4_K_M", kind="other")
    with pytest.raises(BadRecords) as caught:
        runs.find(path)
    assert "'other'" in caught.value.what
    path = text.write(tmp_path / "b.parquet", "nb", "Q4_K_M", quant={})
    with pytest.raises(BadRecords) as caught:
        runs.find(path)
    assert caught.value.where == str(path)


def test_a_metric_of_the_other_kind(tmp_path, text):
    a = text.write(tmp_path / "a.parquet", "nb", "Q4_K_M")
    with pytest.raises(UsageError) as caught:
        both(a, a, ("score",))
    assert caught.value.fix == "one of: kld_nats, nll_nats, top1_agreement"


ROWS = [
    ("qa", "nb", "1", "g1", 1.0),
    ("qa", "nb", "2", "g1", 0.0),
    ("qa", "en", "1", "g1", 1.0),
    ("mc", "nb", "1", "g2", 0.0),
]


def test_items_are_joined_by_what_they_are(tmp_path):
    a = items(tmp_path / "a.parquet", ROWS)
    b = items(tmp_path / "b.parquet", [(*r[:4], 1 - r[4]) for r in reversed(ROWS[:3])], "en")
    nb, en = both(a, b, ("score",))
    assert (nb.title(), nb.task, nb.names, nb.n_unmatched) == ("mixeval nb", "mixeval", ("g1",), 1)
    np.testing.assert_array_equal(nb.values[0]["score"], [1, 0])
    np.testing.assert_array_equal(nb.values[1]["score"], [0, 1])
    assert en.n_unmatched == 0
    assert len(en.codes) == 1


def test_items_twice_or_never(tmp_path):
    a = items(tmp_path / "a.parquet", [*ROWS, ROWS[0]])
    with pytest.raises(BadRecords) as caught:
        both(a, a, ("score",))
    assert "twice" in caught.value.what
    a = items(tmp_path / "a.parquet", ROWS)
    b = items(tmp_path / "b.parquet", [("qa", "nb", "9", "g", 1.0)])
    with pytest.raises(BadRecords) as caught:
        both(a, b, ("score",))
    assert caught.value.where == str(a) and "twice" not in caught.value.what
    assert coded(["a", "b", "a"]).codes.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    "change",
    [
        {"kind": []}, {"kind": None}, {"quant": "x"}, {"quant": {"sha256": 1, "type": "Q2_K"}},
        {"quant": {"sha256": "x", "type": "Q2_K", "size_bytes": "9"}}, {"text": {"label": 7}},
        {"text": "nb"}, {"task": "mixeval"}, {"protocol": [1]}, {"toolchain": {"commit": {}}},
        {"reference": {"sha256": ["x"]}},
    ],
)  # fmt: skip
def test_signatures_that_make_no_sense_are_refused(tmp_path, change):
    path = Text("nb", 3).write(tmp_path / "x.parquet", "nb", "Q4_K_M", **change)
    with pytest.raises(BadRecords):
        runs.find(path)
