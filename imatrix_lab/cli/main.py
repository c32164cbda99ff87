"""``imatrix-lab``: the list of commands, and the one place where errors are caught."""

import codecs
import contextlib
import io
import shlex
import signal
import sys
import traceback
from typing import NoReturn

import click

from imatrix_lab import __version__
from imatrix_lab.cli import terminal_text
from imatrix_lab.cli.lazy import LazyGroup
from imatrix_lab.core.names import readable
from imatrix_lab.errors import ImatrixLabError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


COMMANDS = {
    "tune": ("tune", "Make tuned GGUF files for a language: corpus, imatrix, quants."),
    "quantize": ("quantize", "Quantize a model with an existing importance matrix."),
    "corpus": ("corpus", "Build and inspect calibration and held-out text."),
    "imatrix": ("imatrix", "Compute, inspect, merge and compare importance matrices."),
    "sensitivity": ("sensitivity", "Measure which parts of a model a language suffers from."),
    "model": ("model", "Fetch models and show what is in them."),
    "score": ("score", "Measure how far quants diverge from the full model."),
    "compare": ("compare", "Test whether one quant is better than another."),
    "power": ("power", "Plan a comparison: what it can detect, and what it costs."),
    "task": ("task", "Run benchmarks on quants."),
    "preference": ("preference", "Let people vote blindly on quants' answers."),
    "study": ("study", "Run a whole experiment from a recipe file."),
    "report": ("report", "Write a study's report as HTML, Markdown or JSON."),
    "card": ("card", "Write a model card for files that others made."),
    "publish": ("publish", "Send finished files to the Hugging Face Hub, with their card."),
    "toolchain": ("toolchain", "Build llama.cpp and show where it is."),
    "store": ("store", "List and clean the cache."),
    "doctor": ("doctor", "Check the installation and print how to fix it."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="imatrix-lab")
def cli() -> None:
    """Language-tuned importance matrices and k-quants for llama.cpp.

    Results go to stdout (add --json for scripts); progress and notes go to stderr.

    \b
    Example:
      imatrix-lab tune nb --type Q4_K_M --type Q5_K_M
    """


def main() -> NoReturn:
    """Run the command line; exit 0, 1 (expected error), 2 (usage), 3 (a bug), 130 (stopped)."""
    if codecs.lookup(sys.getfilesystemencoding()).name != "utf-8":
        from imatrix_lab.core.process import restart_in_utf8

        restart_in_utf8()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=terminal_text.ERRORS)
    for number in (signal.SIGTERM, signal.SIGHUP):  # programs that we have started end with us
        if signal.getsignal(number) is signal.SIG_DFL:  # else it is ignored, by nohup
            signal.signal(number, signal.default_int_handler)
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Return the exit status of one command."""
    try:
        status = cli.main(argv, prog_name="imatrix-lab", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("\nstopped; run the same command to continue", file=sys.stderr)
        return 130
    except ImatrixLabError as error:
        print(f"error: {_tame(str(error))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except Exception as error:
        return _bug(error)
    return status if isinstance(status, int) else 0


def _tame(text: str) -> str:
    """Return a message without what steers a terminal; names of files have it."""
    return "\n".join(map(readable, text.split("\n")))


def _bug(error: Exception) -> int:
    """Write a traceback to a log, and say so."""
    import platform

    from imatrix_lab.core.store import default_root, os_error

    with contextlib.suppress(Exception):  # which would hide the error itself
        told = os_error(error, default_root()) if isinstance(error, OSError) else error
        if isinstance(told, ImatrixLabError):
            print(f"error: {_tame(str(told))}", file=sys.stderr)
            return told.exit_code
    versions = (
        f"imatrix_lab {__version__}, Python {platform.python_version()}, {platform.platform()}"
    )
    details = f"{versions}\n{shlex.join(sys.argv[1:])}\n"
    details = _tame(details + "".join(traceback.format_exception(error)))
    try:
        log = default_root() / "crash.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(details, encoding="utf-8")
        where = f"the details are in {log}"
    except Exception:
        where = f"the details follow\n{details}"
    print(_tame(f"bug: {type(error).__name__}: {error}\n  {where}"), file=sys.stderr)
    return 3
