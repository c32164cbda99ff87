"""``imatrix-lab quantize``: quantize with an existing importance matrix."""

from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from imatrix_lab.cli import options
from imatrix_lab.cli.terminal import new_table, stderr, stdout
from imatrix_lab.core.format import duration, size
from imatrix_lab.types import NOT_FOR_USE, TOKENS_DEFAULT, QuantFacts


@click.command()
@options.MODEL
@click.option(
    "--imatrix",
    "imatrix_path",
    required=True,
    metavar="FILE",
    help="An importance matrix (GGUF or .dat; hf:org/repo/file on the Hub), or none.",
)
@click.option(
    "--type",
    "types",
    type=options.Types(NOT_FOR_USE),
    multiple=True,
    metavar="TYPE",
    help="Quant type, e.g. Q4_K_M; repeat for several. INT4_GPTQ and INT4_AWQ are written as F16,"
    " to compare with, not for use; --imatrix needs moments. [default: Q4_K_M Q5_K_M]",
)
@options.SIZES
@click.option(
    "--heldout",
    metavar="TEXT",
    help="Language or text file to check the quant with; required with none."
    " [default: the imatrix's language]",
)
@options.FIELD
@click.option("--out", type=options.PathType(), default=Path("quants"), show_default=True)
@options.COMPUTE
@click.option(
    "--awq",
    is_flag=True,
    help="Scale channels first (AWQ), so that rounding loses less; the model computes the same.",
)
@click.option(
    "--feedback",
    is_flag=True,
    help="Round with error feedback, for types from Q2_K to Q8_0: less loss in the imatrix's own"
    " language at the same size, maybe more in others. --imatrix needs moments (imatrix build"
    " --moments).",
)
@options.QUANTIZED_BY
@click.option("--allow-requantize", is_flag=True, help="Accept a model that is already quantized.")
@click.option(
    "--force",
    is_flag=True,
    help="Use an imatrix that fails its check, which the quant's metadata then says; replace files"
    " that are there and are something else. Each is named first.",
)
@options.JSON
def quantize(
    model: str, imatrix_path: str, types: Any, heldout: str | None, as_json: bool, **rest: Any
) -> None:
    """Quantize with an existing importance matrix, or none.

    \b
    Example:
      imatrix-lab quantize --model model-f16.gguf --imatrix nb.imatrix.gguf --type "Q4_K_M Q3_K_S"
      imatrix-lab quantize --model model-f16.gguf --imatrix nb.imatrix.gguf --size 3.5GiB
      imatrix-lab quantize --model model-f16.gguf --imatrix nb.moments.gguf --type Q4_K_M --feedback
    """  # fmt: skip
    from imatrix_lab.models import hub_spec
    from imatrix_lab.models.resolve import check_spec
    from imatrix_lab.pipeline.tune import quants
    from imatrix_lab.quantize import int4

    session = options.session()
    heldout = options.language(heldout, session.progress) if heldout else ""
    request = options.request(heldout, types, model=model, n_tokens=TOKENS_DEFAULT, **rest)
    if hub_spec.is_spec(imatrix_path):
        check_spec(model, session.store)  # before an imatrix is fetched
    source = None if imatrix_path == "none" else options.imatrix_file(imatrix_path, session)
    result = quants(request, source, session)
    if as_json:
        return options.emit(result)
    print_quants(result.quants, result.files)
    for quant in result.quants:
        if note := int4.note(quant, result.model.facts.n_parameters):
            stderr.print(note, markup=False)


def print_quants(quants: tuple[QuantFacts, ...], files: tuple[Path, ...]) -> None:
    """Print a table of finished quants."""
    table = new_table("file", "size", "bits/weight", "fallback", "perplexity", "original", "time")
    for q, path in zip(quants, files, strict=True):
        table.add_row(
            escape(path.name), size(q.size_bytes), f"{q.bits_per_weight:.2f}",
            f"{len(q.fallback)} of {q.n_tensors}", f"{q.perplexity:.4f}",
            f"{q.perplexity_reference:.4f}", "cached" if q.seconds is None else duration(q.seconds),
        )  # fmt: skip
    stdout.print(table)
    for q in quants:
        for line in q.fallback[:5]:
            stderr.print(f"fallback in {q.type}: {line}", markup=False)
    stderr.print(f"in {files[0].parent}/, with manifest.json and README.md", markup=False)
    stderr.print(
        f"perplexity on {quants[0].n_windows} held-out windows: a smoke test, not a benchmark",
        style="dim",
    )
