"""ONNX: a fitted VAE as a file that runs without PyTorch.

==============  ==================================================================
export          write encoder, decoder, autoencoder, ELBO, prior, or all in one file
OnnxVAE         run such a file with onnxruntime, as a scikit-learn transformer
register        teach sklearn-onnx to convert Pipelines that hold a VAE
draw            the computational graph as a picture (SVG)
quantize        int8 weights, with a report of what was gained and lost
info            what a file says about itself
==============  ==================================================================

All need the extra: ``pip install 'skvae[onnx]'``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Resolved on first use: OnnxVAE must not wait for torch, nor export for onnxruntime.
_PUBLIC = {
    "export": "exporting",
    "OnnxVAE": "runtime",
    "register": "pipeline",
    "draw": "drawing",
    "quantize": "quantization",
    "QuantizationReport": "quantization",
    "info": "metadata",
}

__all__ = [*_PUBLIC]

if TYPE_CHECKING:
    from .drawing import draw as draw
    from .exporting import export as export
    from .metadata import info as info
    from .pipeline import register as register
    from .quantization import QuantizationReport as QuantizationReport
    from .quantization import quantize as quantize
    from .runtime import OnnxVAE as OnnxVAE


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module 'skvae.onnx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
