import subprocess
import sys
from pathlib import Path

import pytest

from skvae import __version__, cli, demo


def test_demo_runs_with_its_options(monkeypatch):
    seen = []
    monkeypatch.setattr(demo, "run", lambda dataset, out: seen.append((dataset, out)))
    assert cli.main(["demo"]) == 0
    assert cli.main(["demo", "--dataset", "mnist", "--out", "here"]) == 0
    assert seen == [("digits", Path("skvae-demo")), ("mnist", Path("here"))]


@pytest.mark.parametrize(
    ("error", "status"),
    [(FileNotFoundError("call load_mnist"), 1), (KeyboardInterrupt(), 130)],
)
def test_errors_are_one_line_and_a_status(monkeypatch, capsys, error, status):
    def fail(*_):
        raise error

    monkeypatch.setattr(demo, "run", fail)
    assert cli.main(["demo"]) == status
    message = capsys.readouterr().err
    assert message.startswith("skvae: ")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["demo", "--dataset", "cats"]])
def test_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert "usage: skvae" in capsys.readouterr().err


def test_version_needs_no_torch():
    script = (
        "import sys; from skvae import cli\n"
        "try: cli.main(['--version'])\n"
        "finally: assert 'torch' not in sys.modules\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout
    assert output == f"skvae {__version__}\n"
