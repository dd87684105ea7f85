"""Long work says how far it is, in logs too."""

import sys
from types import SimpleNamespace

import pytest

from lorica import progress


def test_in_a_log_there_is_a_line_a_minute(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    with progress.bar(columns=("numbers",)) as bar:
        task = bar.add_task("learning", total=100, completed=10, numbers="")
        for clock.now, done in ((59, 20), (60, 40), (119, 41), (120, 42)):
            bar.update(task, completed=done, numbers=f"loss {done}")
        clock.now = 200.0
        bar.advance(task)
    lines = capsys.readouterr().err.splitlines()
    said = [line.partition(", 0:00:0")[0] for line in lines]
    assert said == ["learning: 40/100, loss 40", "learning: 42/100, loss 42", "learning: 43/100, loss 42"]
    assert all(" passed, about 0:00:0" in line and line.endswith(" left") for line in lines)


def test_short_work_and_hidden_work_say_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    assert list(progress.track(range(3), "counting", total=3)) == [0, 1, 2]
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    with progress.bar() as bar:
        bar.update(bar.add_task("hidden", total=3, visible=False), completed=1)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert not progress.bar().disable
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert progress.bar().disable
