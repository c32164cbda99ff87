"""Language-tuned importance matrices and k-quants for llama.cpp."""

__version__ = "0.1.0"
