"""The command line: ``skvae demo``, ``export``, ``quantize``, ``info``."""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="skvae", description="Variational autoencoders as scikit-learn estimators."
    )
    parser.add_argument("--version", action="version", version=f"skvae {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="fit, look, search and sample on real digits, with a report",
        description="Fit a VAE, draw what it learned, search a small grid, and write "
        "the pictures and a self-contained report.html.",
    )
    demo.add_argument(
        "--dataset",
        choices=["digits", "mnist"],
        default="digits",
        help="digits come with scikit-learn; mnist must have been downloaded "
        "(default: %(default)s)",
    )
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("skvae-demo"),
        metavar="DIR",
        help="folder for pictures and report (default: %(default)s)",
    )
    demo.set_defaults(run=_demo)

    export = commands.add_parser(
        "export",
        help="write a saved model as ONNX",
        description="Write a model that skvae.save wrote, or a part of it, as ONNX.",
    )
    export.add_argument("model", type=Path, metavar="MODEL")
    export.add_argument("out", type=Path, metavar="OUT")
    export.add_argument(
        "--part",
        choices=["all", "encoder", "decoder", "autoencoder", "elbo", "prior"],
        default="all",
        help="what to write (default: %(default)s)",
    )
    export.add_argument(
        "--opset", type=int, metavar="N", help="version of the operator set"
    )
    export.set_defaults(run=_export)

    quantize = commands.add_parser(
        "quantize",
        help="make an ONNX file smaller, with a report",
        description="Write an exported file with weights of eight bits, and say what "
        "was gained and lost.",
    )
    quantize.add_argument("path", type=Path, metavar="IN")
    quantize.add_argument("out", type=Path, metavar="OUT")
    quantize.add_argument(
        "--rows",
        type=Path,
        metavar="NPY",
        help="rows to measure on, as numpy.save writes them (default: the model's own)",
    )
    quantize.add_argument(
        "--calibrate",
        type=Path,
        metavar="NPY",
        help="rows to calibrate static quantisation with (default: dynamic)",
    )
    quantize.set_defaults(run=_quantize)

    info = commands.add_parser(
        "info",
        help="say what is in a saved or an exported model",
        description="Print what a .safetensors or an .onnx file says about itself.",
    )
    info.add_argument("path", type=Path, metavar="FILE")
    info.set_defaults(run=_info)

    options = parser.parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = _show_warning
            options.run(options)
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"skvae: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("skvae: interrupted", file=sys.stderr)
        return 130
    return 0


def _demo(options: argparse.Namespace) -> None:
    # Here, so that `skvae --help` does not wait for torch.
    from .demo import run

    run(options.dataset, options.out)


def _export(options: argparse.Namespace) -> None:
    from .onnx import export
    from .persistence import load

    more = {} if options.opset is None else {"opset": options.opset}
    export(load(options.model), options.out, options.part, **more)


def _quantize(options: argparse.Namespace) -> None:
    import numpy as np

    from .onnx import quantize

    def read(path: Path | None) -> np.ndarray | None:
        return None if path is None else np.load(path, allow_pickle=False)

    rows, calibration = read(options.rows), read(options.calibrate)
    print(quantize(options.path, options.out, calibration, X=rows))


def _info(options: argparse.Namespace) -> None:
    if options.path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(options.path, "numpy") as file:
            entries = {k: _parsed(v) for k, v in (file.metadata() or {}).items()}
            names = sorted(file.keys())
            entries["arrays"] = {n: file.get_slice(n).get_shape() for n in names}
    else:
        from .onnx import info

        entries = info(options.path)
    for key, value in entries.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, what in value.items():
                print(f"  {name}: {_short(what)}")
        else:
            print(f"{key}: {_short(value)}")


def _parsed(value: str) -> Any:
    """The value of some JSON, or the text where it is none."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]} ... ({len(text)} characters)"


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """One line of a warning, in place of ``warnings.showwarning``."""
    print(f"skvae: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
