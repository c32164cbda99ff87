"""Files that are not of one size."""

import pytest

from imatrix_lab.compare.compare import compare_runs
from imatrix_lab.compare.design import ComparisonPlan
from imatrix_lab.core.progress import Silent
from imatrix_lab.errors import UsageError
from tests.compare.made_up import Text, quant

TEXT = Text("nb", n_documents=12, tokens=30)


@pytest.fixture
def runs(tmp_path):
    """A function: calibrations, types and sizes in bytes -> files of records."""

    def write(*quants):
        return [
            TEXT.write(
                tmp_path / f"{i}.parquet", calibration, kind, quant=quant(calibration, kind, "1", n)
            )
            for i, (calibration, kind, n) in enumerate(quants)
        ]

    return write


def compared(paths, **plan):
    return compare_runs(paths, ComparisonPlan(n_resamples=100, **plan), ("kld_nats",), Silent())


@pytest.mark.parametrize("size_bytes", [10**9, 1_002_900_000, 0])
def test_files_of_one_size_or_of_none_that_is_known(runs, size_bytes):
    paths = runs(("nb", "Q4_K_M", 10**9), ("nb", "size:Q4_K_M", size_bytes))
    assert compared(paths).size_gaps == ()


def test_others_are_refused_unless_told(runs):
    paths = runs(("nb", "Q4_K_M", 10**9), ("en", "Q3_K_S", 1_004_000_000))
    with pytest.raises(UsageError) as error:
        compared(paths)
    assert "en Q3_K_S is 0.40% larger than nb Q4_K_M" in error.value.what
    assert "--any-size" in error.value.fix
    report = compared(paths, any_size=True)
    (gap,) = report.size_gaps
    assert (gap.bytes_a, gap.bytes_b) == (10**9, 1_004_000_000)
    assert len(report.comparisons) == 1


def test_a_family_refuses_only_what_it_compares(runs):
    """Types of different sizes may lie beside each other, where calibrations are compared."""
    paths = runs(
        ("nb", "Q4_K_M", 10**9), ("en", "Q4_K_M", 10**9),
        ("nb", "Q3_K_S", 8 * 10**8), ("en", "Q3_K_S", 8 * 10**8),
    )  # fmt: skip
    assert len(compared(paths, family=("calib", "type")).comparisons) == 2
    with pytest.raises(UsageError):
        compared(paths, family=("type", "calib"))


def test_samples_count_by_their_mean(runs):
    paths = runs(("nb", "Q4_K_M", 10**9))
    for i, n in enumerate((999_000_000, 1_001_000_000)):
        path = paths[0].with_name(f"en{i}.parquet")
        of = quant("en", "Q4_K_M", str(i), n)
        paths.append(TEXT.write(path, "en", "Q4_K_M", sample=str(i), quant=of))
    assert compared(paths, family=("calib",)).size_gaps == ()
