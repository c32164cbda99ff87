"""``imatrix-lab toolchain``: build llama.cpp, and show where it is."""

import click

from imatrix_lab.cli import options
from imatrix_lab.errors import MissingTool
from imatrix_lab.llamacpp.toolchain import Toolchain, default_backend, find


@click.group()
def toolchain() -> None:
    """Build llama.cpp, and show where its programs are."""


@toolchain.command("build")
@options.BACKEND
def toolchain_build(backend: str | None) -> None:
    """Build llama.cpp unless it is built; print the folder of its programs.

    \b
    Example:
      imatrix-lab toolchain build --backend cuda
    """
    from imatrix_lab.llamacpp.build import get_toolchain

    options.echo(get_toolchain(backend or default_backend(), options.session()).bin_dir)


@toolchain.command("path")
@options.BACKEND
def toolchain_path(backend: str | None) -> None:
    """Print the folder of llama.cpp's programs.

    \b
    Example:
      $(imatrix-lab toolchain path)/llama-bench --help
    """
    options.echo(_built(backend).bin_dir)


@toolchain.command("version")
@options.BACKEND
@options.JSON
def toolchain_version(backend: str | None, as_json: bool) -> None:
    """Print commit, backend and compiler, as they stand in every signature.

    \b
    Example:
      imatrix-lab toolchain version
    """
    signature = _built(backend).signature()
    if as_json:
        return options.emit(signature)
    click.echo(" ".join(f"{k}={v}" for k, v in signature.items()))


def _built(backend: str | None) -> Toolchain:
    tools = find(options.session().store, backend or default_backend())
    if tools is None:
        raise MissingTool("llama.cpp is not built", fix="imatrix-lab toolchain build")
    return tools
