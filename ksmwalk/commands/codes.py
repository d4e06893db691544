"""Exit codes of all commands, and how a command says what is wrong.

====  ==================================================================================================
0     fine
1     a difference was found, or something of several could not be done while the others went on
2     nothing could be run: a wrong call, input that can't be read, no permission, the machine's KSM in use
130   interrupted (128 + SIGINT)
141   whoever read the output has closed it (128 + SIGPIPE, as a shell shows it); nothing is said of that
====  ==================================================================================================

SIGTERM and SIGHUP while the machine's KSM is taken put it back and end with 143 and 129.
"""

from __future__ import annotations

import contextlib
import os
import sys

from .report import printable

FINE, FAILED, UNUSABLE, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141

#: the same for `ksmwalk --help`
EPILOG = (
    "exit codes: 0 fine; 1 a difference, or something of several could not be done; 2 nothing could be run (a wrong "
    "call, input that can't be read, no permission); 130 interrupted; 141 the reader of the output has gone"
)


def complain(who: str, text: str) -> None:
    """Print a line to stderr, where there is one; characters that could drive a terminal are written out.

    Parameters
    ----------
    who : str
        The command.
    text : str
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(f"{who}: " + "\n  ".join(map(printable, text.split("\n"))), file=sys.stderr, flush=True)


def open_standard_files() -> bool:
    """Put /dev/null where standard files are closed, so that nothing else is opened in their place.

    Returns
    -------
    bool
        Whether there is somebody to write to.
    """
    was_open = True
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            was_open = was_open and number != 1
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    # None where it was closed, which argparse of Python 3.11.2 writes to
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")
    return was_open


def forget_output() -> None:
    """Keep the interpreter from writing at its end what could not be written before."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
