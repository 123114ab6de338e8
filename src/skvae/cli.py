"""The command line: ``skvae demo``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

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

    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (FileNotFoundError, ImportError, NotADirectoryError) as error:
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


if __name__ == "__main__":
    sys.exit(main())
