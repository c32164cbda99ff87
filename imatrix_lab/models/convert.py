"""Models by name, converted from safetensors where they have to be."""

from imatrix_lab.core.session import Session
from imatrix_lab.llamacpp import toolchain
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models import hub
from imatrix_lab.models import resolve as models
from imatrix_lab.types import Model


def resolve(spec: str, session: Session) -> Model:
    """Return a model; llama.cpp is only needed where a repository must be converted."""
    tools = toolchain.find(session.store, toolchain.default_backend())
    return models.resolve(spec, session, converter(tools) if tools else None)


def converter(tools: Toolchain) -> hub.Converter:
    """Return llama.cpp's converter of this toolchain."""
    return hub.Converter(version=tools.commit, script=tools.convert_script)
