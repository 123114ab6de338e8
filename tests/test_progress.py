import io

from skvae.engine import Record
from skvae.progress import Progress, _clock


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
