"""Time the comparison of a whole grid: 5 calibrations x 5 languages x 3 types, 75 runs.

    make bench-grid                      writes the runs to a temporary folder, then times
    python tools/bench_grid.py --tokens 100000 --resamples 10000

The command is timed as a user starts it, from files to JSON: every pair of calibrations in every
language and type, in KLD and NLL, with all tests, intervals, interactions and sentences.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from imatrix_lab.records import parquet

LANGUAGES = ("nb", "en", "ml", "sw", "de")
TYPES = ("Q2_K", "Q3_K_S", "Q4_K_M")


def write_runs(folder: Path, n_tokens: int, n_documents: int) -> None:
    """Write 75 files of token records; a matched calibration is a little better."""
    rng = np.random.default_rng(1)
    for lang in LANGUAGES:
        bounds = np.sort(rng.choice(np.arange(1, n_tokens), n_documents - 1, replace=False))
        codes = np.repeat(np.arange(n_documents), np.diff([0, *bounds, n_tokens])).astype(np.int32)
        shared = np.exp(
            -3 + rng.normal(0, 0.3, n_documents)[codes] + 1.3 * rng.normal(size=n_tokens)
        )
        nll = rng.gamma(2, 1.5, n_tokens)
        position = np.arange(n_tokens, dtype=np.int32)
        for calib in LANGUAGES:
            for size, quant_type in enumerate(TYPES):
                scale = (0.95 if calib == lang else 1.0) / 4**size
                kld = shared * scale * np.exp(rng.normal(0, 0.25, n_tokens))
                columns = {
                    "doc_id": parquet.Coded(codes, tuple(f"d{i}" for i in range(n_documents))),
                    "window": position // 512, "pos": position % 512, "token": position % 32_000,
                    "nll": (nll + kld * rng.normal(1, 2, n_tokens)).astype(np.float32),
                    "kld": kld.astype(np.float32),
                }  # fmt: skip
                name = f"{lang}-{calib}-{quant_type}"
                quant = {"sha256": name, "type": quant_type, "calibration": calib,
                         "imatrix_sha256": calib}  # fmt: skip
                signature = {"kind": "token", "quant": quant, "text": {"label": lang}}
                parquet.write(folder / f"{name}.parquet", columns, signature)


def main() -> None:
    """Print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--documents", type=int, default=120)
    parser.add_argument("--resamples", type=int, default=10_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write_runs(Path(name), arguments.tokens, arguments.documents)
        argv = [
            sys.executable, "-c", "from imatrix_lab.cli.main import main; main()", "compare", name,
            "--family", "calib×lang×type", "--margin", "0.001", "--json",
            "--resamples", str(arguments.resamples),
        ]  # fmt: skip
        began = time.monotonic()
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        seconds = time.monotonic() - began
    report = json.loads(done.stdout)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{len(report['signatures'])} runs of {arguments.tokens:,} tokens in {arguments.documents}"
        f" documents, {len(report['comparisons'])} comparisons, {len(report['interactions'])}"
        f" interactions, {arguments.resamples:,} resamples: {seconds:.1f} s (processor"
        f" {used.ru_utime + used.ru_stime:.1f} s, memory {used.ru_maxrss / 1024:.0f} MiB)"
    )


if __name__ == "__main__":
    main()
