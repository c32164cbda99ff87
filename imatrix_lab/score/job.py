"""What one scoring run is made of, and the rows it produces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from imatrix_lab.records import Model
from imatrix_lab.score.engine import Settings
from imatrix_lab.score.kernel import Kernel, Rows
from imatrix_lab.score.text import Plan, Text
from imatrix_lab.score.windows import Protocol, Step, steps
from imatrix_lab.toolchain import Toolchain

if TYPE_CHECKING:
    import numpy as np

METRICS_VERSION = 1
"""Raise it when the same models and text give other numbers. 1: first records."""


@dataclass(frozen=True)
class Job:
    """A reference on a text, by one protocol and one way of running models."""

    tools: Toolchain
    kernel: Kernel
    reference: Model
    text: Text
    plan: Plan
    protocol: Protocol
    settings: Settings

    def steps(self, batch: int) -> Iterator[Step]:
        """Yield the decodes of a batch."""
        return steps(self.plan.batches[batch], self.settings.n_batch, self.settings.n_rows)

    def inputs(self) -> dict[str, Any]:
        """Return what determines the reference's distributions."""
        return {
            "metrics_version": METRICS_VERSION,
            "toolchain": self.tools.signature(),
            "reference_sha256": self.reference.sha256,
            "text_sha256": self.text.sha256(),
            "protocol": asdict(self.protocol),
            "settings": self.settings.signature(),
        }


def row_type() -> np.dtype[Any]:
    """Return the type of one scored token's row: nats as float32, token ids as int32."""
    import numpy as np

    floats, ids = ("nll_ref", "nll", "kld", "kld_full"), ("top1_ref", "top1")
    return np.dtype([(name, "f4") for name in floats] + [(name, "i4") for name in ids])


def packed(
    targets: np.ndarray, ref_logits: np.ndarray, ref_rows: Rows, logits: np.ndarray, rows: Rows
) -> np.ndarray:
    """Return rows of `row_type`: NLL of the true tokens, KL divergence, top tokens."""
    import numpy as np

    found = np.empty(len(targets), row_type())
    found["nll_ref"] = nll(targets, ref_logits, ref_rows)
    found["nll"] = nll(targets, logits, rows)
    found["kld"] = found["kld_full"] = rows.kld
    found["top1_ref"], found["top1"] = ref_rows.top, rows.top
    return found


def nll(targets: np.ndarray, logits: np.ndarray, rows: Rows) -> np.ndarray:
    """Return -ln p of the true tokens, float64 (n,)."""
    import numpy as np

    picked: np.ndarray = rows.log_sum - logits[np.arange(len(targets)), targets]
    return picked
