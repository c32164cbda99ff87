"""What a choice of types loses with all tensors together, and what each group adds to that.

Errors add while they are small. Where a choice is predicted to lose much, its tensors are replaced
in memory, all at once, and group by group put back: what that wins is the group's part where it
counts, in the company of the others. The same text is read as by the probes.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imatrix_lab.core.files import from_json, write_whole
from imatrix_lab.core.session import Session
from imatrix_lab.llamacpp import ggml
from imatrix_lab.llamacpp.native import Interruptible
from imatrix_lab.quantize.probes import Probing, Run
from imatrix_lab.quantize.sensitivity import Sensitivity
from imatrix_lab.score.patched import Patched

VERSION = 1
ADDITIVE_NATS = 0.5
"""A choice that is predicted to lose more is measured: above, errors do not quite add any more."""
FACTOR_MAX = 4.0
"""How many times more, or less, than predicted a group is taken to lose."""
_FILE = "together.json"
_ALL = ""
"""Of `_FILE`: with no group put back."""


@dataclass(frozen=True)
class Together:
    """The mean KLD of a choice, in nats a token, and by group the same with that group put back."""

    kld_nats: float
    without: Mapping[str, float]

    def factors(self, predicted: Mapping[str, float]) -> dict[str, float]:
        """Return how many times its predicted loss each group adds."""
        added = {group: self.kld_nats - kld for group, kld in self.without.items()}
        return {
            group: min(max(nats / predicted[group], 1 / FACTOR_MAX), FACTOR_MAX)
            for group, nats in added.items()
            if predicted[group] > 0
        }


def together(
    what: Probing, types: Mapping[str, str], measured: Sensitivity, session: Session, apart: bool
) -> Together:
    """Return what tensors at these types lose on the text of a sensitivity.

    From the store if it is there; `apart`: with each group put back, too.
    """
    inputs = {
        "version": VERSION,
        "sensitivity": measured.signature,
        "types": dict(sorted(types.items())),
        "apart": apart,
    }

    def make(out: Path, scratch: Path) -> Mapping[str, Any]:
        found = _measure(what, types, len(measured.tokens), apart, scratch, session)
        write_whole(out / _FILE, json.dumps(asdict(found)))
        return {"n_groups": len(found.without)}

    label = f"{what.model.label}-{measured.language}"
    artifact = session.store.get("together", label, inputs, make, session.progress)
    return Together(**from_json((artifact.path / _FILE).read_text(encoding="utf-8")))


def _measure(
    what: Probing,
    types: Mapping[str, str],
    n_pieces: int,
    apart: bool,
    scratch: Path,
    session: Session,
) -> Together:
    run = Run(what, scratch, session)
    named = {g: {n: types[n] for n in names if n in types} for g, names in run.groups.items()}
    groups = {_ALL: dict[str, str](), **{g: of for g, of in named.items() if of and apart}}
    path = scratch / _FILE
    klds: dict[str, float] = from_json(path.read_text("utf-8")) if path.exists() else {}
    missing, needed = [g for g in groups if g not in klds], run.first(n_pieces)
    if missing:
        unit = f"what types lose together {what.label}", len(missing), "passes"
        with (
            session.progress.task(*unit) as task,
            Patched(what.tools, what.kernel, what.model, what.settings, Interruptible()) as engine,
        ):
            engine.open_tensors(what.tools, ggml.load(what.tools), session)
            run.read_reference(engine, [b for b in needed if not run.reference.has(b)])
            for of in named.values():
                run.replace(engine, of)
            for done, group in enumerate(missing):
                for name in filter(engine.has, groups[group]):
                    engine.restore(name)
                klds[group] = run.divergence(engine, needed)
                run.replace(engine, groups[group])
                write_whole(path, json.dumps(klds))
                task.update(done + 1)
    return Together(klds.pop(_ALL), klds)
