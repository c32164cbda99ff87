"""Records of runs that never were: shaped like real ones, with effects that are known."""

from pathlib import Path
from typing import Any

import numpy as np

from imatrix_lab.records import parquet

TOOLCHAIN = {"commit": "c0ffee", "backend": "cpu", "compiler": "gcc 12", "cpu": "x86-64"}


def coded(words: list[str]) -> parquet.Coded:
    names = tuple(dict.fromkeys(words))
    place = {name: i for i, name in enumerate(names)}
    return parquet.Coded(np.array([place[w] for w in words], np.int32), names)


def quant(
    calibration: str, kind: str, sample: str = "1", size_bytes: int = 10**9
) -> dict[str, Any]:
    imatrix = f"imatrix-{calibration}-{sample}" if calibration else ""
    return {
        "sha256": f"quant-{calibration}-{kind}-{sample}", "name": f"demo-{calibration}-{kind}.gguf",
        "type": kind, "size_bytes": size_bytes, "bits_per_weight": 4.0, "imatrix_sha256": imatrix,
        "calibration": calibration,
    }  # fmt: skip


class Text:
    """Documents of one language; what every run shares on them is drawn once."""

    def __init__(self, label: str, n_documents: int = 30, tokens: int = 60, seed: int = 1):
        rng = np.random.default_rng([seed, *label.encode()])
        self.label, self.n_documents = label, n_documents
        self.sizes = rng.integers(tokens // 2, tokens * 3 // 2, n_documents)
        self.codes = np.repeat(np.arange(n_documents), self.sizes)
        self.shared = rng.lognormal(-3, 1.2, len(self.codes))
        self.level = np.exp(rng.normal(0, 0.3, n_documents))
        self.nll_ref = rng.gamma(2, 1.5, len(self.codes))

    def write(
        self,
        path: Path,
        calibration: str,
        quant_type: str,
        effect: float = 0.0,
        sample: str = "1",
        seed: int = 0,
        **signature: Any,
    ) -> Path:
        """Write a run whose KLD is (1 + effect) times what is shared, and some noise."""
        rng = np.random.default_rng(
            [seed, *f"{calibration}{quant_type}{sample}{self.label}".encode()]
        )
        n = len(self.codes)
        kld = self.shared * self.level[self.codes] * (1 + effect) * rng.lognormal(0, 0.2, n)
        top = rng.random(n) < 0.8
        columns = {
            "doc_id": parquet.Coded(
                self.codes.astype(np.int32),
                tuple(f"{self.label}/{i}" for i in range(self.n_documents)),
            ),
            "window": np.arange(n, dtype=np.int32) // 64,
            "pos": np.arange(n, dtype=np.int32) % 64,
            "token": np.arange(n, dtype=np.int32) * 7 % 1000,
            "n_bytes": np.full(n, 4, np.int32),
            "nll_ref": self.nll_ref.astype(np.float32),
            "nll": (self.nll_ref + kld * rng.normal(1, 2, n)).astype(np.float32),
            "kld": kld.astype(np.float32),
            "top1_ref": np.zeros(n, np.int32),
            "top1": np.where(top, 0, 1).astype(np.int32),
            "p_ref": np.full(n, 0.5, np.float32),
            "p": np.full(n, 0.5, np.float32),
        }
        columns.update(signature.pop("columns", {}))
        found = {
            "kind": "token", "metrics_version": 1, "package_version": "0", "toolchain": TOOLCHAIN,
            "reference": {"sha256": "reference", "name": "demo-f16.gguf", "type": "F16"},
            "quant": quant(calibration, quant_type, sample),
            "text": {"label": self.label, "sha256": self.label, "n_documents": self.n_documents},
            "protocol": {"name": "sliding", "n_ctx": 512, "overlap": 256},
            "compute": {"threads": 2, "n_batch": 512, "gpu_layers": 0},
        }  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write(path, columns, {**found, **signature})
        return path


def items(
    path: Path,
    rows: list[tuple[str, str, str, str, float]],
    calibration: str = "nb",
    **signature: Any,
) -> Path:
    """Write item records: (task, language, item, cluster, score)."""
    task, language, item, cluster, score = zip(*rows, strict=True)
    columns = {
        "task": coded(list(task)), "language": coded(list(language)), "item_id": coded(list(item)),
        "cluster_id": coded(list(cluster)), "score": np.array(score, float),
        "prediction": coded(["x"] * len(rows)), "gold": coded(["x"] * len(rows)),
        "parsed": np.ones(len(rows), bool),
    }  # fmt: skip
    found = {
        "kind": "item", "metrics_version": 1, "toolchain": TOOLCHAIN, "task": {"name": "mixeval"},
        "quant": quant(calibration, "Q4_K_M"),
    }  # fmt: skip
    parquet.write(path, columns, {**found, **signature})
    return path
