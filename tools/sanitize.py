"""Run the tests of the C++ kernels with the compiler's sanitizers.

    make sanitize                         memory and undefined behaviour, then data races
    python tools/sanitize.py thread --tests tests/imatrix/test_collect.py

The kernels are compiled with the sanitizer, for the tests' own stores; Python, numpy and llama.cpp
are not, so that what is found is found in the kernels. The first finding ends the run.
"""

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLAGS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
LIBRARIES = {"address": "libasan.so", "thread": "libtsan.so"}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",  # Python itself leaks
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:report_signal_unsafe=0:ignore_noninstrumented_modules=1",
}
TESTS = [
    "tests/score/test_kernel.py", "tests/score/test_engine.py",
    "tests/imatrix/test_collect.py", "tests/imatrix/test_moments.py",
    "tests/imatrix/test_quant_error.py", "tests/imatrix/test_output_error.py",
    "tests/quantize/test_feedback.py", "tests/quantize/test_sensitivity.py",
    "tests/quantize/test_errors.py",
]  # fmt: skip
RUNNER = """
import sys
import pytest
from imatrix_lab.llamacpp import native
native._FLAGS += ("-g", "-O1", "-fno-omit-frame-pointer", *sys.argv[1].split())
sys.exit(pytest.main(["-x", "-q", "-s", "-p", "no:cacheprovider", *sys.argv[2:]]))
"""


def library(name: str) -> str:
    """Return the path of one of the compiler's libraries."""
    find = ["g++", f"-print-file-name={name}"]
    path = subprocess.run(find, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(path).is_absolute():
        raise SystemExit(f"the compiler has no {name}")
    return path


def main() -> int:
    """Run the tests under one sanitizer or both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", choices=[*FLAGS, []], help="both, if none is named")
    parser.add_argument("--tests", nargs="+", default=TESTS, metavar="FILE")
    parser.add_argument("--only", default="", metavar="WORDS", help="tests with these words")
    options = parser.parse_args()
    status = 0
    for kind in options.kinds or FLAGS:
        # C++'s own library too: the sanitizer must find it, and Python does not load it
        preloaded = " ".join(map(library, (LIBRARIES[kind], "libstdc++.so.6")))
        argv = [sys.executable, "-c", RUNNER, " ".join(FLAGS[kind]), *options.tests]
        argv += ["-k", options.only] if options.only else []
        if kind == "thread":  # it cannot place its memory where addresses are too random
            argv = ["setarch", platform.machine(), "-R", *argv]
        env = {**os.environ, **OPTIONS, "LD_PRELOAD": preloaded, "PYTHONPATH": str(ROOT)}
        print(f"-- {kind} sanitizer", flush=True)
        status |= subprocess.run(argv, cwd=ROOT, env=env, check=False).returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
