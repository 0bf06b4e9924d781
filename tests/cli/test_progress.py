"""The progress bar: drawn on a terminal after a second, silent elsewhere."""

import io
import sys

from surgeon import Progress
from surgeon_cli import progress

EVENTS = [Progress("write", done, 4 * 10**6, detail="model.norm.weight") for done in (10**6, 2 * 10**6, 4 * 10**6)]


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self):
        return True


def draw(monkeypatch):
    """What the events of a verb leave on a terminal."""
    terminal = Terminal()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", terminal)
        patched.setenv("TERM", "xterm")
        with progress.drawn(quiet=False) as on_event:
            for event in EVENTS:
                on_event(event)
    return terminal.getvalue()


def test_it_shows_stage_share_and_rate(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    shown = draw(monkeypatch)
    assert "write" in shown
    assert "100%" in shown
    assert "B/s" in shown


def test_it_shows_nothing_of_what_takes_less_than_a_second(monkeypatch):
    assert draw(monkeypatch) == ""


def test_nobody_looks(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.drawn(quiet=True) as on_event:
        assert on_event is None
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress.drawn(quiet=False) as on_event:
        assert on_event is None


def test_rates():
    assert progress._rate(None, "bytes") == ""
    assert progress._rate(2_500_000, "bytes") == "2.5 MB/s"
    assert progress._rate(1.25, "tensors") == "1.2 tensors/s"
    assert progress._rate(28_100_000.0, "elements") == "28.1 M elements/s"
