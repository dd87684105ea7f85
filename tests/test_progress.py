"""Long work says how far it is, in logs too."""

import io
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from lorica import progress

HOSTILE = "a\x1b[2J\x1b]0;owned\x07b\rc\x9b31m\x7f\u202etxt.exe\u2066"
UNSAFE = set("\x1b\x07\r\x9b\x7f\u202e\u2066")


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


def on_a_terminal(width: int = 120) -> tuple[Console, io.StringIO]:
    """A console like the shared one, whose colours and cursor movements can be read."""
    written = io.StringIO()
    options = {"force_terminal": True, "color_system": "standard", "width": width, "highlight": False}
    return type(progress.console)(file=written, **options), written


@pytest.mark.parametrize("shape", ["text", "markup", "cell", "title", "rule", "Text", "description"])
def test_no_name_can_command_the_terminal(shape: str):
    console, written = on_a_terminal()
    name = escape(HOSTILE)
    if shape == "description":
        with Progress(console=console, auto_refresh=False) as shown:
            shown.add_task(name, total=1)
    elif shape == "rule":
        console.rule(name)
    elif shape in ("cell", "title"):
        table = Table("name", title=name)
        table.add_row(name)
        console.print(table)
    else:
        console.print(
            {"text": HOSTILE, "markup": f"[bold]{name}[/]", "Text": Text(HOSTILE)}[shape], markup=shape != "text"
        )
    said = written.getvalue()
    assert "a\ufffd[2J\ufffd]0;owned" in said  # shown, as text
    assert not UNSAFE - {"\x1b", "\r"} & set(said)
    assert "\x1b[2J" not in said and "\x1b]" not in said and "b\rc" not in said


def test_what_rich_itself_sends_to_the_terminal_and_honest_text_pass_unchanged():
    (ours, written), plain = on_a_terminal(), io.StringIO()
    theirs = Console(file=plain, force_terminal=True, color_system="standard", width=120, highlight=False)
    for console in (ours, theirs):
        table = Table("[bold]name[/]", "value")
        table.add_row("[red]Käse 猫 👩\u200d🔬 می\u200cخواهم[/]", "1\n2")
        console.print(table, "a\tb\nc", style="green")
        with Live("[blue]one[/]", console=console, auto_refresh=False) as live:
            live.update("two", refresh=True)
    assert written.getvalue() == plain.getvalue() and "\x1b[31m" in written.getvalue()


def test_a_line_of_a_log_commands_no_terminal_either(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    with progress.bar(columns=("numbers",)) as bar:
        bar.update(bar.add_task(HOSTILE, total=3, numbers=HOSTILE), completed=1)
    said = capsys.readouterr().err
    assert said.count("txt.exe") == 2 and not UNSAFE & set(said)
