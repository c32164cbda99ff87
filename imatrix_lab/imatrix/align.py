"""Several importance matrices at once: short names for them, and tensors in one shape."""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from imatrix_lab.core.names import readable
from imatrix_lab.errors import BadImatrix
from imatrix_lab.imatrix.format import MODEL, Entry, Imatrix, layer_and_role

Files = Sequence[tuple[Path, Imatrix]]


def paths(files: Files) -> str:
    """Return the paths of files, for an error."""
    return ", ".join(str(path) for path, _ in files)


def note_on_models(imatrices: Iterable[Imatrix]) -> str:
    """Return a warning if imatrices were computed with different model files, else nothing."""
    models = dict.fromkeys(i.metadata[MODEL] for i in imatrices if MODEL in i.metadata)
    if len(models) < 2:
        return ""
    return (
        "note: computed with different model files"
        f" (sha256 {', '.join(f'{sha256[:12]}…' for sha256 in models)}): fine if they are one"
        " model at different precision, otherwise the result is meaningless"
    )


def labels(files: Files) -> list[str]:
    """Return the shortest names that tell files apart: labels, file names or paths."""
    names_of = [(i.label, readable(p.name)) for p, i in files]
    candidates = [(label, name.partition(".")[0], name) for label, name in names_of]
    for names in zip(*candidates, strict=True):
        if all(names) and len(set(names)) == len(names):
            return list(names)
    return [readable(path) for path, _ in files]


def aligned(name: str, files: Files) -> list[Entry]:
    """Return a tensor's entry in each file, in one shape (a ``.dat`` has one row for experts)."""
    entries = [imatrix.entries[name] for _, imatrix in files]
    for (path, _), entry in zip(files, entries, strict=True):
        if not all(((v >= 0) & np.isfinite(v)).all() for v in (entry.sums, entry.counts)):
            what = f"{name} has NaN, infinite or negative values"
            raise BadImatrix(
                what, where=path, fix=f"imatrix-lab imatrix show {shlex.quote(str(path))}"
            )
    n_matrices = max(_n_experts(name, files[0][1]), *(e.counts.size for e in entries))
    shapes = {(e.sums.size, e.counts.size if e.counts.size > 1 else n_matrices) for e in entries}
    if len(shapes) > 1:
        sizes = ", ".join(sorted(str(n) for n, _ in shapes))
        fix = "use only importance matrices of one model"
        raise BadImatrix(
            f"{name} has different shapes: {sizes} values", where=paths(files), fix=fix
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
