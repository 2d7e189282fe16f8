"""The command line: `streamline COMMAND ...`.

A command is an entry of `COMMANDS`: its name, what it does, its options, and a function of what was given that
returns the exit status. An error is one line on standard error and a status that is not 0.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, cast

import msgspec
import trio

from streamline_trio import MongoStore, StreamlineError, __version__
from streamline_trio.demo.run import run_demo
from streamline_trio.demo.show import open_view, table

FAILED = 1
MISUSED = 2
INTERRUPTED = 130
_INDEX_TIMEOUT = 3600.0


@dataclass(frozen=True)
class Command:
    """One command. `run` prints the outcome and returns the exit status."""

    name: str
    summary: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(MISUSED, f"{self.prog}: {message} (--help says what there is)\n")


def _demo_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--orders", type=int, metavar="N", help="only the first N orders")
    parser.add_argument("--plain", action="store_true", help="plain lines, also on a terminal")
    _common_options(parser)


def _common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", metavar="URL", help="the store, for instance sqlite:///orders.db")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def _demo(given: argparse.Namespace) -> int:
    view = open_view(plain=given.plain, quiet=given.json, terminal=sys.stdout.isatty())
    figures = run_demo(view, store=given.store, orders=given.orders)
    if given.json:
        print(msgspec.json.encode(figures).decode())
    else:
        print(f"\n{table(figures)}")
    for problem in figures.problems:
        print(f"streamline demo: {problem}", file=sys.stderr)
    return 0 if figures.held else FAILED


def _index_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", metavar="URL", required=True, help="a mongodb:// URL with its database")
    parser.add_argument(
        "--check", action="store_true", help="create nothing, only say what is missing or different"
    )
    parser.add_argument(
        "--timeout", type=float, default=_INDEX_TIMEOUT, metavar="S", help="seconds to build them in"
    )


def _ensure_indexes(given: argparse.Namespace) -> int:
    trio.run(_open_once, MongoStore(given.store, timeout=given.timeout, ensure_indexes=not given.check))
    print("every index is there")
    return 0


async def _open_once(store: MongoStore) -> None:
    await store.open()
    await store.aclose()


COMMANDS: tuple[Command, ...] = (
    Command("demo", "fill 300 orders, kill the worker half-way, check that nothing was lost", _demo_options, _demo),
    Command(
        "ensure-indexes", "create the indexes of a MongoDB database, or check them", _index_options, _ensure_indexes
    ),
)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="streamline", description="Durable workflows on trio.")
    parser.add_argument("--version", action="version", version=f"streamline_trio {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        under = commands.add_parser(command.name, help=command.summary, description=command.summary)
        command.configure(under)
        under.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command line; the exit status."""
    try:
        given = _parser().parse_args(argv)
        status: int = given.run(given)
    except SystemExit as ended:  # argparse has said what there is to say
        return ended.code if isinstance(ended.code, int) else MISUSED
    except BaseException as error:
        cause = _first(error)
        if isinstance(cause, KeyboardInterrupt):
            print("streamline: interrupted", file=sys.stderr)
            return INTERRUPTED
        if isinstance(cause, StreamlineError | OSError):
            print(f"streamline: {cause}".replace("\n", " "), file=sys.stderr)
            return FAILED
        raise
    return status


def _first(error: BaseException) -> BaseException:
    """The error itself; of a group the interruption in it, else its first."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [_first(inner) for inner in cast("BaseExceptionGroup[BaseException]", error).exceptions]
    return next((cause for cause in causes if isinstance(cause, KeyboardInterrupt)), causes[0])


if __name__ == "__main__":
    sys.exit(main())
