"""The progress bar says what is being done."""

import io
import time

from rich.console import Console

from kgon.callbacks.progress import Progress


def test_the_bar_says_what_takes_its_time_and_how_long_it_took(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress = Progress(max_steps=100)
    terminal = Console(file=io.StringIO(), force_terminal=True, width=120)

    def shown():
        with terminal.capture() as capture:
            terminal.print(progress.bar)
        return capture.get()

    assert "LLC" not in shown()
    with progress.doing("LLC estimates", 5):
        clock[0] += 7
        assert "5 / 100 steps" in shown()
        assert "LLC estimates: 7 s" in shown()
    assert "LLC" not in shown()
    with progress.doing("LLC estimates", 7):
        clock[0] += 0.1
    with progress.doing("LLC estimates", 10):
        clock[0] += 2
        assert "LLC estimates: 2 of about 7 s" in shown()
