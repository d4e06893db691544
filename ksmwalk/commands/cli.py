"""The command line: `ksmwalk COMMAND ...` or `python -m ksmwalk COMMAND ...`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import KsmwalkError

# Where each command, or group of commands, is at home; `add_parser` or `add_parsers` of the module puts it in.
COMMANDS = (
    "ksmwalk.commands.demo",
    "ksmwalk.commands.scan",
    "ksmwalk.commands.map",
    "ksmwalk.commands.replay",
    "ksmwalk.commands.kernel",
)


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands."""
    parser = argparse.ArgumentParser(
        prog="ksmwalk", description="Walk page tables and model Linux's samepage merging (KSM) exactly."
    )
    parser.add_argument("--version", action="version", version=f"ksmwalk {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(name)
        add = getattr(module, "add_parsers", None) or module.add_parser
        add(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process if left out.

    Returns
    -------
    int
        Exit code: 0, 1 for what went wrong, 2 for a wrong call, 130 for an interrupt.
    """
    args = build_parser().parse_args(argv)
    try:
        code = args.run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader has seen enough; keep the interpreter from complaining about it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("ksmwalk: interrupted", file=sys.stderr)
        return 130
    except (KsmwalkError, OSError, ValueError) as error:
        print(f"ksmwalk {args.command}: {_words(error)}", file=sys.stderr)
        return 1


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
