"""The commands that look after the machine: toolchain, store, doctor."""

import click

from imatrix_lab.cli import options
from imatrix_lab.errors import MissingTool
from imatrix_lab.llamacpp import toolchain as tools


@click.group()
def toolchain() -> None:
    """llama.cpp's programs and libraries."""


@toolchain.command("build")
@options.BACKEND
def toolchain_build(backend: str | None) -> None:
    """Build llama.cpp if it is not built; print its folder.

    \b
    Example:
      imatrix-lab toolchain build --backend cuda
    """
    session = options.session()
    click.echo(tools.get(backend or tools.default_backend(), session).bin_dir)


@toolchain.command("path")
@options.BACKEND
def toolchain_path(backend: str | None) -> None:
    """Print the folder with the programs.

    \b
    Example:
      $(imatrix-lab toolchain path)/llama-bench --help
    """
    click.echo(_found(backend).bin_dir)


@toolchain.command("version")
@options.BACKEND
@options.JSON
def toolchain_version(backend: str | None, as_json: bool) -> None:
    """Print commit, backend and compiler: what goes into every signature.

    \b
    Example:
      imatrix-lab toolchain version
    """
    signature = _found(backend).signature()
    if as_json:
        return options.emit(signature)
    click.echo(" ".join(f"{k}={v}" for k, v in signature.items()))


def _found(backend: str | None) -> tools.Toolchain:
    session = options.session()
    found = tools.find(session.store, backend or tools.default_backend())
    if found is None:
        raise MissingTool("llama.cpp is not built", fix="imatrix-lab toolchain build")
    return found
