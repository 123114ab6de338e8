"""Seconds per epoch of the default model on MNIST, against peers, in turns.

Each round runs every library once in a process of its own; an epoch's figure is the
median of the round without the first epoch (compilation, warm caches), and a ratio is
taken within its round. The last column says that all of them learn the same.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

PEERS = Path(__file__).parent / "peers"


def run(python, script, *arguments):
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    output = subprocess.run(
        [python, str(PEERS / script), *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    ).stdout
    return json.loads(output.strip().split("\n")[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", default=sys.executable, help="python of the peers")
    parser.add_argument("--only", nargs="*", help="names of the rows to run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=100)
    options = parser.parse_args()

    ours = sys.executable
    rows = {
        "skvae": (ours, "run_skvae.py", "auto"),
        "skvae float32": (ours, "run_skvae.py", "float32"),
        "JAX jit + scan": (options.peers, "run_jax.py"),
        "Pythae": (options.peers, "run_pythae.py"),
        "skorch": (options.peers, "run_skorch.py"),
    }
    if options.only:
        rows = {name: rows[name] for name in options.only}
    seconds = {name: [] for name in rows}
    losses = {}
    for _ in range(options.rounds):
        for name, (python, script, *extra) in rows.items():
            result = run(python, script, options.epochs, options.batch_size, *extra)
            seconds[name].append(statistics.median(result["seconds"][1:]))
            losses[name] = result["loss"]

    print(f"MNIST, batch {options.batch_size}, {options.rounds} rounds in turns")
    print(f"{'':<16}{'s/epoch':>9}{'skvae/it':>10}{'min':>7}{'max':>7}{'loss':>9}")
    for name, values in seconds.items():
        ratios = [a / b for a, b in zip(seconds["skvae"], values, strict=True)]
        print(
            f"{name:<16}{statistics.median(values):>9.2f}"
            f"{statistics.median(ratios):>10.2f}{min(ratios):>7.2f}{max(ratios):>7.2f}"
            f"{losses[name]:>9.2f}"
        )


if __name__ == "__main__":
    main()
