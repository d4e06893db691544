"""The command line: `ksmwalk COMMAND ...` or `python -m ksmwalk COMMAND ...`."""

from __future__ import annotations

import argparse
import importlib
import io
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import KsmwalkError
from . import codes

# Where each command, or group of commands, is at home; `add_parser` or `add_parsers` of the module puts it in.
COMMANDS = (
    "ksmwalk.commands.demo",
    "ksmwalk.commands.scan",
    "ksmwalk.commands.why",
    "ksmwalk.commands.map",
    "ksmwalk.commands.estimate",
    "ksmwalk.commands.sweep",
    "ksmwalk.commands.simulate",
    "ksmwalk.commands.compare",
    "ksmwalk.commands.explain",
    "ksmwalk.commands.apply",
    "ksmwalk.commands.capture",
    "ksmwalk.commands.replay",
    "ksmwalk.commands.reproduce",
    "ksmwalk.commands.trace",
    "ksmwalk.commands.kernel",
    "ksmwalk.commands.calibrate",
    "ksmwalk.commands.probe",
)


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands."""
    parser = argparse.ArgumentParser(
        prog="ksmwalk",
        description="Walk page tables and model Linux's samepage merging (KSM) exactly.",
        epilog=codes.EPILOG,
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
        Exit code: see :mod:`ksmwalk.commands.codes`.
    """
    if argv is None and not codes.open_standard_files():
        codes.complain("ksmwalk", "standard output is closed")
        return codes.UNUSABLE
    for stream in (sys.stdout, sys.stderr):
        # names of files and processes need not be text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    args = build_parser().parse_args(argv)
    who = f"ksmwalk {args.command}"
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        codes.forget_output()
        return codes.BROKEN_PIPE
    except KeyboardInterrupt:
        codes.complain("ksmwalk", "interrupted")
        return codes.INTERRUPTED
    except (KsmwalkError, OSError, ValueError, MemoryError) as error:
        codes.complain(who, _words(error))
        try:
            sys.stdout.flush()
        except (OSError, ValueError):
            codes.forget_output()
        return codes.UNUSABLE


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
