"""Fuzz one format with coverage as a guide: inputs that reach new code are changed further.

    pip install atheris
    python tools/fuzz_guided.py gguf --inputs 20000 --minutes 5

Inputs are read, and findings defined and kept, as in `tools/fuzz.py`. JSON and TOML are changed by
value (and sealed again) or, like all others, by libFuzzer's changes of bytes. Not for
``signed-records``, whose files cannot be turned back into values.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["imatrix_lab"], enable_loader_override=False):
    import fuzz
    import fuzz_targets

from fuzz_inputs import changed_bytes, changed_value

from imatrix_lab.core.files import DIGEST


def value_of(data: bytes) -> Any:
    """Return what a JSON or TOML file says, without its digest; ValueError if it is neither."""
    try:
        value = json.loads(data)
    except ValueError:
        return tomllib.loads(data.decode())
    return {k: v for k, v in value.items() if k != DIGEST} if isinstance(value, dict) else value


def main() -> None:
    """Fuzz until so many inputs were read or the time is over; libFuzzer ends the process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("format", choices=fuzz_targets.ALL)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--work", type=Path, default=Path("/tmp/imatrix-lab-fuzz-guided"))
    options = parser.parse_args()
    target = fuzz_targets.ALL[options.format]
    folder = options.work / target.name
    shutil.rmtree(folder, ignore_errors=True)
    for place in (folder / "inputs", folder / "corpus", options.work / "findings"):
        place.mkdir(parents=True, exist_ok=True)
    for name in ("TMPDIR", "HOME", "IMATRIX_LAB_CACHE", "HF_HOME", "IMATRIX_LAB_DATA"):
        os.environ[name] = str(folder)
    cases = target.honest(folder / "honest")
    for case in cases:
        shutil.copyfile(case.path, folder / "corpus" / case.path.name)
    everything = [case.path.read_bytes() for case in cases]
    case, path = cases[0], folder / "inputs" / cases[0].path.name
    own = {fuzz.digest(target.read(fuzz.copied(case, folder)))}
    kinds, n_found = Counter[str](), Counter[str]()
    watch = fuzz.Watch(folder)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        outcome = fuzz.tried(target, path, own, False, watch)
        kinds[outcome.kind] += 1
        if outcome.kind.isupper():
            place = [x for x in outcome.details.splitlines() if "imatrix_lab" in x][-1:]
            name = hashlib.sha256(f"{outcome.kind} {place}".encode()).hexdigest()[:8]
            n_found[name] += 1
            if n_found[name] == 1:
                kept = options.work / "findings" / f"{target.name}-{name}"
                kept.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, kept)
                (kept / "why.txt").write_text(f"{outcome.kind}\n{outcome.details}")
                print(f"{target.name}: {outcome.kind} {place}: {kept}", flush=True)
        if (n := sum(kinds.values())) % 500 == 0 or n == options.inputs:
            print(f"{target.name}: {n} inputs, {dict(sorted(kinds.items()))}", flush=True)

    def mutated(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if case.write and rng.random() >= case.share_of_bytes:
            with contextlib.suppress(ValueError, RecursionError, OverflowError, AttributeError):
                case.write(path, changed_value(value_of(data), rng))
                changed: bytes = path.read_bytes()
                if len(changed) <= max_size:
                    return changed
        if rng.random() < 0.5:
            return changed_bytes(data, rng, everything)[:max_size]
        return bytes(atheris.Mutate(data, max_size))

    flags = [f"-runs={options.inputs}", f"-seed={options.seed}", "-len_control=0",
             f"-max_total_time={60 * options.minutes:.0f}", "-verbosity=0",
             "-rss_limit_mb=2048", f"-artifact_prefix={options.work}/findings/",
             f"-max_len={2 * max(map(len, everything)) + 4096}"]  # fmt: skip
    atheris.Setup([sys.argv[0], *flags, str(folder / "corpus")], read, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
