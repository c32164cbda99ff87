"""Several importance matrices at once: what tells them apart, and whether they fit together."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from imatrix_lab.errors import BadImatrix
from imatrix_lab.imatrix.format import MODEL, Entry, Imatrix, layer_and_role

Files = Sequence[tuple[Path, Imatrix]]


def note_on_models(imatrices: Iterable[Imatrix]) -> str:
    """Return what to say where imatrices come from different model files; empty where not."""
    found = dict.fromkeys(i.metadata[MODEL] for i in imatrices if MODEL in i.metadata)
    if len(found) < 2:
        return ""
    words = ", ".join(f"{sha256[:12]}…" for sha256 in found)
    return (
        f"note: computed with different model files (sha256 {words}): fine if they are one model"
        " in different precision, else the result means nothing"
    )


def labels(files: Files) -> list[str]:
    """Return short names that tell files apart: languages, else file names, else paths."""
    candidates = (
        [found.language for _, found in files],
        [path.name.partition(".")[0] for path, _ in files],
        [path.name for path, _ in files],
    )
    for names in candidates:
        if all(names) and len(set(names)) == len(names):
            return names
    return [str(path) for path, _ in files]


def aligned(name: str, files: Files) -> list[Entry]:
    """Return a tensor's entries in one shape; a ``.dat`` has one row for all experts.

    Raises
    ------
    BadImatrix : values that no activation can be, or different shapes.
    """
    entries = [found.entries[name] for _, found in files]
    for (path, _), entry in zip(files, entries, strict=True):
        sound = np.isfinite(entry.sums).all() and np.isfinite(entry.counts).all()
        if not sound or (entry.sums < 0).any() or (entry.counts < 0).any():
            raise BadImatrix(
                f"{name} has NaN, infinite or negative values",
                where=path,
                fix=f"see what is wrong: imatrix-lab imatrix show {path}",
            )
    n_matrices = max(_n_experts(name, files[0][1]), *(e.counts.size for e in entries))
    shapes = {(e.sums.size, e.counts.size if e.counts.size > 1 else n_matrices) for e in entries}
    if len(shapes) > 1:
        raise BadImatrix(
            f"{name} has different shapes: {', '.join(sorted(str(s[0]) for s in shapes))} values",
            where=", ".join(str(path) for path, _ in files),
            fix="take only importance matrices of one model",
        )
    return [e.split(n_matrices) for e in entries]


def _n_experts(name: str, imatrix: Imatrix) -> int:
    """Return the number of experts where a ``.dat`` does not say: by the router's input; or 1."""
    layer, role = layer_and_role(name)
    router = imatrix.entries.get(f"blk.{layer}.ffn_gate_inp.weight")
    up = imatrix.entries.get(f"blk.{layer}.ffn_up_exps.weight")
    if not (role.endswith("_exps") and router and up) or up.sums.size % router.sums.size:
        return 1
    return up.sums.size // router.sums.size
