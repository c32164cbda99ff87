"""Tensors of one layer that are multiplied by the same input, so that one's sums are the other's.

Some programs record one of them for all: ik_llama.cpp fuses gate and up, others q, k and v.
"""

import re
from collections.abc import Mapping

from imatrix_lab.imatrix.expected import ModelTensors
from imatrix_lab.imatrix.format import Entry, layer_and_role

_GROUPS = (
    re.compile(r"attn_(q|k|v|qkv|q_a|kv_a_mqa)"),
    re.compile(r"ffn_(gate|up|gate_up|up_gate)(?P<kind>|_exps|_shexp|_chexps)"),
)


def group(name: str) -> tuple[int | None, str] | None:
    """Return what tensors that read one input have in common."""
    layer, role = layer_and_role(name)
    for pattern in _GROUPS:
        if match := pattern.fullmatch(role):
            return layer, pattern.pattern + (match.groupdict().get("kind") or "")
    return None


def lacking(entries: Mapping[str, Entry], model: ModelTensors) -> dict[str, str]:
    """Return the tensors that an imatrix lacks and a sibling has, with the sibling's name."""
    groups: dict[tuple[int | None, str], list[str]] = {}
    for name in sorted(entries):
        if key := group(name):
            groups.setdefault(key, []).append(name)
    donors = {}
    for name in sorted(model.expected - entries.keys()):
        key = group(name)
        for sibling in groups.get(key, ()) if key else ():
            if model.fits(name, entries[sibling]):
                donors[name] = sibling
                break
    return donors
