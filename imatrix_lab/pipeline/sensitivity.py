"""How much each language suffers from errors in each part of a model: text to a file."""

from pathlib import Path

from imatrix_lab.core.outputs import check_file, check_folder
from imatrix_lab.core.session import Session
from imatrix_lab.corpus.mixture import Mixture
from imatrix_lab.imatrix import format
from imatrix_lab.models import resolve
from imatrix_lab.pipeline import tune
from imatrix_lab.quantize import probes, sensitivity
from imatrix_lab.quantize.sensitivity import SUFFIX
from imatrix_lab.types import Request


def build(request: Request, imatrix_path: Path | None, out: Path | None, session: Session) -> Path:
    """Measure a language's coefficients and put them at `out`; return its path.

    Without an imatrix, that of the same text is collected.
    """
    text = tune.check_text(request)
    resolve.check_spec(request.model, session.store)
    if files := resolve.files_of(request.model):
        probes.check_memory(resolve.facts(files), request.compute, files[0])
    if imatrix_path:
        format.read(imatrix_path)
    rules = tune.rules_of(request, session, *filter(None, [imatrix_path]))
    if out:
        check_file(out, rules, lambda _: "")
    elif isinstance(text, Mixture):
        check_file(Path(f"{text.label}{SUFFIX}"), rules, lambda _: "")
    else:
        check_folder(Path())
    tools, model = tune.prepare(request, session)
    corpus = tune.corpus_of(request, tools, model, session)
    target = out or Path(f"{corpus.language}{SUFFIX}")
    check_file(target, rules, sensitivity.other_than(corpus.language, model.sha256))
    if imatrix_path:
        imatrix = tune.given_imatrix(imatrix_path, model, session)
    else:
        imatrix = tune.imatrix_of(request, tools, model, corpus, session)
    measured = probes.sensitivity_of(tools, model, (corpus, imatrix), request.compute, session)
    sensitivity.write(target, measured)
    return target
