"""Does llama.cpp load this model? Asked once, before the work, in a process that may die of it.

The library builds the model without its weights, and splits a line of text: what is missing, of
another shape or unknown to it comes out at once, with its reason and its warnings.
"""

import ctypes
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imatrix_lab.core import process
from imatrix_lab.core.session import Session
from imatrix_lab.errors import BadModel, ToolFailed
from imatrix_lab.llamacpp import programs
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.types import Model

_FIX = "imatrix-lab model fetch hf:ORG/REPO, the original on the Hub: it is converted anew"
_TEXT = "Hei, verden! 42 日本語 العربية\n"
_WARNING, _ERROR = 3, 4  # GGML_LOG_LEVEL_*
_ABORT = re.compile(r"^\S*?([^/\s]+:\d+: GGML_.+)|^ +what\(\): +(.+)", re.MULTILINE)
_LETTERS = {_WARNING: "W", _ERROR: "E"}


def warnings_of(tools: Toolchain, model: Model, session: Session) -> tuple[str, ...]:
    """Return what llama.cpp warns of when it loads a model, each kind of warning once.

    Raises BadModel, with llama.cpp's reason: it cannot load it.
    """

    def ask(out: Path, scratch: Path) -> Mapping[str, Any]:
        argv = [sys.executable, "-P", "-m", "imatrix_lab.models.loading", str(model.path)]
        environment = {"LLAMA_CPP_LIB_PATH": str(tools.library_dir), "GGML_NO_BACKTRACE": "1"}
        log = out / "load.log"
        log.unlink(missing_ok=True)
        try:
            process.run(argv, env=environment, log=log, timeout_s=600)
        except ToolFailed as error:
            if not (why := reason(error.tail)):
                raise
            what = f"llama.cpp cannot load this model: {why}"
            raise BadModel(what, where=model.path, fix=_FIX) from error
        output = log.read_text(encoding="utf-8", errors="replace")
        return {"warnings": list(programs.warnings(output))}

    inputs = {"model_sha256": model.sha256, "toolchain": tools.signature()}
    label = f"{model.label}-{model.sha256[:8]}"
    artifact = session.store.get("load", label, inputs, ask, session.progress)
    return tuple(artifact.facts["warnings"])


def reason(output: str) -> str:
    """Return why llama.cpp failed, in its own words, or "" if it does not say."""
    if abort := _ABORT.search(output):
        return abort[1] or abort[2]
    return programs.reason(re.findall(r"^0 E (.+)", output, re.MULTILINE))


def _load(path: str) -> None:
    import llama_cpp as llama

    def tell(level: int, text: bytes, data: object) -> None:
        if letter := _LETTERS.get(level):
            sys.stdout.write(f"0 {letter} {text.decode('utf-8', 'replace').strip()}\n")
            sys.stdout.flush()  # an abort would lose it

    callback = llama.llama_log_callback(tell)
    llama.llama_log_set(callback, ctypes.c_void_p(0))
    parameters = llama.llama_model_default_params()
    parameters.no_alloc, parameters.load_mode = True, llama.LLAMA_LOAD_MODE_NONE
    parameters.n_gpu_layers, parameters.use_extra_bufts = 0, False
    model = llama.llama_model_load_from_file(os.fsencode(path), parameters)
    if not model:
        raise SystemExit(1)
    raw = _TEXT.encode()
    room = (llama.llama_token * (8 * len(raw)))()
    llama.llama_tokenize(
        llama.llama_model_get_vocab(model), raw, len(raw), room, len(room), True, False
    )


if __name__ == "__main__":
    _load(sys.argv[1])
