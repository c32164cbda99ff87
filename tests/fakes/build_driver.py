"""Builds a toolchain with stand-ins for the slow parts: a small sdist, cmake and ninja.

    python -m tests.fakes.build_driver ROOT

The fake ninja "compiles" ten files, a tenth of a second each, and like the real one does not
do again what an earlier, interrupted run has done. ROOT/compiled lists every file compiled, and
ROOT/configured what cmake was told. The trial says that builds named in $IMATRIX_LAB_CRASH crash;
with $IMATRIX_LAB_ILL, programs of the native build cannot even say their version.
"""

import os
import sys
import tarfile
from pathlib import Path

from imatrix_lab.cli.terminal import Terminal
from imatrix_lab.core import pypi
from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import ToolFailed
from imatrix_lab.llamacpp import build, toolchain
from imatrix_lab.llamacpp import programs as llamacpp
from imatrix_lab.llamacpp.build import get_toolchain

CMAKE = """#!/bin/sh
echo "$@" >> "{root}/configured"
while [ "$1" != -B ]; do shift; done
mkdir -p "$2/bin"
"""
NINJA = """#!/bin/sh
cd "$2"
for i in 1 2 3 4 5 6 7 8 9 10; do
  [ -e $i.o ] && continue
  sleep 0.1
  [ "$IMATRIX_LAB_FAIL_AT" = $i ] && echo "$i.cpp:1: error: no" && exit 1
  echo $i >> "{root}/compiled"
  echo > $i.o
  echo "[$i/10] Building $i.o"
done
for name in {programs}; do
  printf '#!/bin/sh\\n' > bin/$name
  [ -n "$IMATRIX_LAB_ILL" ] && tail -n 1 "{root}/configured" | grep -q NATIVE=ON &&
    printf 'kill -ILL $$\\n' >> bin/$name
  printf 'echo "version: 0.5.0 (build 0, commit {commit})"\\n' >> bin/$name
  printf 'echo "built with fake 1.0 for here"\\n' >> bin/$name
  chmod +x bin/$name
done
"""


def main(root: Path) -> None:
    """Build under ROOT/cache and print the folder."""
    bin_dir = root / "bin"
    bin_dir.mkdir(exist_ok=True)
    programs = " ".join(llamacpp.PROGRAMS)
    ninja = NINJA.replace("{root}", str(root)).replace("{programs}", programs)
    scripts = {
        "cmake": CMAKE.replace("{root}", str(root)),
        "ninja": ninja.replace("{commit}", llamacpp.COMMIT),
    }
    for name, text in scripts.items():
        temporary = bin_dir / f"{name}.{os.getpid()}"
        temporary.write_text(text)
        temporary.chmod(0o755)
        temporary.replace(bin_dir / name)

    def download(name: str, version: str, sha256: str, folder: Path, *, source: bool) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        tree = folder / "x" / "vendor" / "llama.cpp"
        for part in ("conversion", "gguf-py/gguf"):
            (tree / part).mkdir(parents=True, exist_ok=True)
        for file in ("convert_hf_to_gguf.py", "LICENSE"):
            (tree / file).write_text("")
        with tarfile.open(folder / "sdist.tar.gz", "w:gz") as archive:
            archive.add(folder / "x", "x")
        return folder / "sdist.tar.gz"

    def try_build(tools: toolchain.Toolchain, scratch: Path, progress: Progress) -> None:
        if tools.build in os.environ.get("IMATRIX_LAB_CRASH", "").split(","):
            raise ToolFailed("died (SIGILL)", crashed=True)

    build.try_build = try_build
    build._script = lambda name: str(bin_dir / name)  # type: ignore[assignment]
    pypi.download = download  # type: ignore[assignment]
    print(get_toolchain("cpu", Session(Store(root / "cache"), Terminal(plain=True))).bin_dir)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
