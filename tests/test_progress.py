import io

from skvae.history import Record
from skvae.progress import Progress, SearchProgress, _clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


def record(epoch, validation_loss=None):
    return Record(
        epoch=epoch,
        loss=103.456,
        reconstruction=77.6,
        kl=25.8,
        active_units=20,
        learning_rate=1e-3,
        seconds=1.0,
        validation_loss=validation_loss,
    )


def test_terminal_rewrites_one_line():
    stream = Terminal()
    progress = Progress(4, stream, width=8)
    progress(record(1))
    progress(record(2, validation_loss=105.5))
    progress.close()
    text = stream.getvalue()
    assert text.count("\r") == 2
    assert text.count("\n") == 1
    assert "epoch 2/4 [####....] loss 103.46  recon 77.60  KL 25.80" in text
    assert "validation 105.50" in text
    assert text.rstrip().endswith("left")


def test_log_file_gets_about_ten_lines():
    stream = io.StringIO()
    progress = Progress(200, stream)
    for epoch in range(200):
        progress(record(epoch))
    progress.close()
    assert len(stream.getvalue().splitlines()) == 10


def test_clock():
    assert [_clock(s) for s in (0, 65, 3661)] == ["0:00", "1:05", "1:01:01"]


def test_a_search_counts_by_what_tasks_cost():
    stream = Terminal()
    progress = SearchProgress([9.0, 1.0], [3, 1], stream, width=10)
    progress.started -= 9.0  # nine seconds ago
    progress(0, 3)
    assert "fit 3/4 [#########.]  0:01 left" in stream.getvalue()
    progress(1, 1)
    progress.close()
    assert stream.getvalue().endswith("fit 4/4 [##########]  0:00 left\n")


def test_a_search_without_estimates_counts_results():
    stream = io.StringIO()
    progress = SearchProgress([0.0] * 40, [1] * 40, stream, width=4)
    for task in range(40):
        progress(task, 1)
    progress.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[4].startswith("fit 20/40 [##..]")
    # A task of unknown length is taken for a usual one.
    assert SearchProgress([4.0, 0.0], [1, 1], stream).work == 8
