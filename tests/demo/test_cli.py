"""The command line: what it refuses, and how it says so."""

import io
import sys

import pytest
from rich.console import Console

import streamline_trio
from streamline_trio import StreamlineError
from streamline_trio.cli import main
from streamline_trio.demo.live import Live
from streamline_trio.demo.show import Figures, Plain, Progress, open_view, table


@pytest.mark.parametrize(
    ("given", "status", "said"),
    [
        ("", 2, "COMMAND"),
        ("fly", 2, "'fly'"),
        ("demo --orders many", 2, "'many'"),
        ("demo --frobnicate", 2, "--frobnicate"),
        ("demo --orders 0", 1, "from 1 to 300"),
        ("demo --orders 301", 1, "from 1 to 300"),
        ("demo --store memory:", 1, "memory:"),
        ("demo --store carrier-pigeon://loft", 1, "'carrier-pigeon'"),
        ("demo --store sqlite:////no/such/directory/runs.db", 1, "/no/such/directory"),
    ],
)
def test_an_error_is_one_line_and_a_status(given, status, said, capsys):
    """Proves that whatever is wrong is told in one line on standard error, and that the status is not 0."""
    assert main(given.split()) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("streamline")
    assert err.count("\n") == 1
    assert said in err


def test_the_version(capsys):
    """Proves that `--version` tells the version of the package."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"streamline_trio {streamline_trio.__version__}\n"


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        BaseExceptionGroup("", [ValueError(), BaseExceptionGroup("", [KeyboardInterrupt()])]),
    ],
)
def test_an_interruption_is_one_line(error, capsys, monkeypatch):
    """Proves that Ctrl-C, also from deep inside, ends a command without a traceback."""

    def interrupted(*_args, **_options):
        raise error

    monkeypatch.setattr("streamline_trio.cli.run_demo", interrupted)
    assert main(["demo", "--plain"]) == 130
    assert capsys.readouterr().err == "streamline: interrupted\n"


def test_a_fault_of_ours_is_not_hidden(monkeypatch):
    """Proves that an error which is nobody's input keeps its traceback."""

    def broken(*_args, **_options):
        raise ZeroDivisionError

    monkeypatch.setattr("streamline_trio.cli.run_demo", broken)
    with pytest.raises(ZeroDivisionError):
        main(["demo", "--plain"])


def test_without_rich_a_terminal_is_told_what_to_install(monkeypatch):
    """Proves that only the live view needs the extra, and that the error names it."""
    monkeypatch.delitem(sys.modules, "streamline_trio.demo.live", raising=False)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(StreamlineError, match=r"streamline-trio\[cli\].*--plain"):
        open_view(plain=False, quiet=False, terminal=True)
    assert isinstance(open_view(plain=True, quiet=False, terminal=True), Plain)
    assert isinstance(open_view(plain=False, quiet=False, terminal=False), Plain)


def test_the_live_view_shows_what_happens():
    """Proves that a terminal sees the events, the statuses and the ledger."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    progress = Progress(
        seconds=4.2,
        orders=300,
        by_status={"done": 120, "waiting": 30},
        effects={"charge": 150},
        retries=7,
        approvals=3,
        steps_per_second=88.0,
    )
    with Live(console) as view:
        view.happened(4.1, "worker 1 is killed")
        view.update(progress)
    shown = screen.getvalue()
    for text in ("worker 1 is killed", "120", "charge 150", "7 retries", "88 steps/s"):
        assert text in shown


def test_figures_that_do_not_hold_make_the_status_1(capsys, monkeypatch):
    """Proves that a broken promise is printed and fails the command."""
    figures = Figures(
        **dict.fromkeys(
            ["orders", "settled", "done", "failed", "compensated", "steps", "undone", "retries", "approvals"], 1
        ),
        **dict.fromkeys(["recoveries", "lost", "effects", "repeated"], 0),
        rerun=1,
        steps_per_second=1.0,
        recovered_after_kill=None,
        recovered_after_ready=None,
        all_recovered_after_kill=None,
        seconds=1.0,
        problems=["SO-1: charge, attempt 1 by worker 2, was made before"],
    )
    assert "first run taken over                      never" in table(figures)
    assert "the ledger disagrees" in table(figures)
    monkeypatch.setattr("streamline_trio.cli.run_demo", lambda *_args, **_options: figures)
    assert main(["demo", "--plain"]) == 1
    assert capsys.readouterr().err == "streamline demo: SO-1: charge, attempt 1 by worker 2, was made before\n"
