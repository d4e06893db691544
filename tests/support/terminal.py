"""A program in a terminal of its own: what it writes there, colours and all."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios


def in_terminal(command, width=80, height=50, each=lambda running, written: None):
    """Run a command until it ends; `each` is told of the process and of all that was written, whenever there is more.

    Exit code and text; the command must write nothing to standard error.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, env=environment) as running:
        os.close(theirs)
        written = bytearray()
        while True:
            try:
                some = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not some:
                break
            written += some
            each(running, written)
        errors = running.stderr.read()
    os.close(ours)
    assert errors == b""
    return running.returncode, written.decode()
