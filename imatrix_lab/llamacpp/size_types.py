"""Types that stand for a size: the best types of tensors that fit it."""

import math
import re

from imatrix_lab.errors import UsageError
from imatrix_lab.llamacpp import programs
from imatrix_lab.types import NOT_FOR_USE

PREFIX = "size:"
"""Of a type that stands for the best types of a size: ``size:Q4_K_M``, ``size:3.5GiB``."""
_BITS = "bpw"
_UNITS = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_UNITS |= {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SPELLED = {u: u.replace("I", "i") for u in _UNITS}


def parse(text: str) -> str:
    """Return a size as a type, ``size:Q4_K_M``, ``size:3.5GiB`` or ``size:4.5bpw``.

    Raises UsageError: it is none.
    """
    word = text.strip().removeprefix(PREFIX)
    try:
        return PREFIX + programs.quant_types([word])[0]
    except KeyError:
        pass
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]+)", word, re.IGNORECASE)
    unit = match[2].upper() if match else ""
    if not match or not float(match[1]) or unit not in (*_UNITS, _BITS.upper()):
        fix = "--size 3.5GiB, --size Q4_K_M (as large as that type), or --bits 4.5"
        raise UsageError(f"{text!r} is not a size", fix=fix)
    return f"{PREFIX}{float(match[1]):.12g}{_SPELLED.get(unit, _BITS)}"


def is_size(quant_type: str) -> bool:
    """Whether a type stands for the best types of a size."""
    return quant_type.startswith(PREFIX)


def standard(quant_type: str) -> str:
    """Return the standard type that a size is given by, or ""."""
    word = quant_type.removeprefix(PREFIX)
    return word if word in programs.QUANT_TYPES else ""


def in_name(quant_type: str, base: str) -> str:
    """Return what names of files have for a type; `base` is the standard type nearest to a size.

    >>> in_name("size:3.5GiB", "Q4_K_S"), in_name("size:Q4_K_M", ""), in_name("Q4_K_M", "")
    ('3.5GiB-as-Q4_K_S', 'as-Q4_K_M', 'Q4_K_M')
    >>> in_name("INT4_GPTQ", "F16")
    'INT4_GPTQ-not-for-use-F16'
    """
    if quant_type in NOT_FOR_USE:
        return f"{quant_type}-not-for-use-F16"
    if not is_size(quant_type):
        return quant_type
    if name := standard(quant_type):
        return f"as-{name}"
    return f"{quant_type.removeprefix(PREFIX)}-as-{base}"


def n_bytes(quant_type: str, n_weights: int, header_bytes: int) -> int:
    """Return the most bytes that a file of a size may have; a standard type has none of its own.

    Bits per weight are over all tensors, as they are shown: the header is not in them.
    """
    match = re.fullmatch(r"([\d.]+)(\w+)", quant_type.removeprefix(PREFIX))
    assert match, quant_type
    if match[2] == _BITS:
        return header_bytes + math.floor(float(match[1]) * n_weights / 8)
    return math.floor(float(match[1]) * _UNITS[match[2].upper()])
