"""Changes to honest files: bytes by chance, and values of JSON and TOML that make no sense."""

import copy
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

_INTEGERS = (0, 1, 2, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 1.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "x", "\0", "\ud800", "../../escape", "/tmp/escape", "~nobody/x", "{x|y}",
    "{a.b[c]}", "%s", "hf:a/b", "nb=0.5,en=0.5", "nb=1e999", "\u202e<script>", "9" * 5000, [], {},
    [None], [[]], {"": None}, ["a", "a"], "a" * 70_000, -(2**63), 2**53 + 1,
)  # fmt: skip


def changed_bytes(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Return bytes with one to four changes, of the kinds that disks, networks and enemies make."""
    raw = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, n = rng.randrange(max(1, len(raw))), rng.choice((1, 2, 4, 8, 64, 512))
        # most of what a reader decides on stands at the beginning
        at = at if rng.random() < 0.5 else rng.randrange(max(1, min(len(raw), 512)))
        match rng.randrange(9):
            case 0 if raw:
                raw[at] ^= 1 << rng.randrange(8)
            case 1 if raw:
                raw[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                width = rng.choice((1, 4, 8))
                value = rng.choice(_INTEGERS) % (1 << 8 * width)
                raw[at : at + width] = value.to_bytes(width, "little")
            case 3:
                del raw[at : at + n]
            case 4:
                raw[at:at] = raw[at : at + n] or b"\0"
            case 5:
                del raw[at:]
            case 6:
                raw[at : at + n] = rng.randbytes(n)
            case 7:
                other = rng.choice(others)
                start = rng.randrange(max(1, len(other)))
                raw[at : at + n] = other[start : start + n]
            case _:
                raw[at : at + n] = bytes(n)
    return bytes(raw)


def changed_value(value: Any, rng: random.Random) -> Any:
    """Return JSON values with one to three changes: other types, missing keys, odd numbers."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return _odd(rng)
        container, key = rng.choice(places)
        match rng.randrange(7):
            case 0:
                del container[key]
            case 1 if isinstance(container, dict):
                container[rng.choice(("x", "", "kind", str(key)[::-1]))] = container.pop(key)
            case 1 | 2 if isinstance(container, list):
                container.append(container[key])
            case 3:
                container[key] = rng.choice(places)[0]
                if _is_in(container, container[key]):
                    container[key] = None
            case 4 if isinstance(container[key], int | float):
                container[key] = rng.choice((-container[key], container[key] * 10**9, 0, 1))
            case 5:
                deep = _odd(rng)
                for _ in range(rng.choice((3, 100, 3000))):
                    deep = [deep] if rng.random() < 0.5 else {"a": deep}
                container[key] = deep
            case _:
                container[key] = _odd(rng)
    return value


def _odd(rng: random.Random) -> Any:
    """Return an odd value that nothing else holds: what is changed in it later stays there."""
    return copy.deepcopy(rng.choice(_VALUES))


def _is_in(container: Any, value: Any) -> bool:
    """Whether a value holds its container: JSON has no circles."""
    try:
        json.dumps(value)
    except (ValueError, RecursionError):
        return True
    return False


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    pending = [value]
    while pending:
        container = pending.pop()
        if isinstance(container, dict | list):
            keys = container if isinstance(container, dict) else range(len(container))
            for key in list(keys):
                yield container, key
                pending.append(container[key])


def as_json(value: Any) -> bytes:
    """Return JSON; nested too deeply for Python's own writer, a row of brackets."""
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"[" * 100_000


def as_toml(value: Any) -> bytes:
    """Return a table as TOML, inner tables in a line; what TOML lacks becomes text."""
    try:
        table = value if isinstance(value, dict) else {"x": value}
        return "".join(f"{json.dumps(k)} = {_inline(v)}\n" for k, v in table.items()).encode()
    except RecursionError:
        return b"x = " + b"[" * 100_000


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return '"null"' if value is None else json.dumps(value)
