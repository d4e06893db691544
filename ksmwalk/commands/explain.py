"""`ksmwalk explain`: this machine's KSM in words, on screen, as JSON, or as metrics."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

from .. import kernels
from ..layout.whole import write_whole
from ..proc.frames import ksm_frames
from ..proc.ksmstate import KsmProcess, KsmState, Moment, read_ksm_state
from . import explain_text, explaining, openmetrics, report
from .codes import FINE, UNUSABLE, complain
from .screen import HelpFormatter, Screen, progress

try:
    import rich.live
    import rich.text
except ImportError:
    rich = None  # type: ignore[assignment] # a module where it is installed

# How often ksmd's counters are looked at, and how seldom at the longest; so that an end of a pass is seen as it comes.
_PACE, _MOST_LOOKS = 0.1, 50
_WATCH = 2.0
# Looking into mappings may take this much of the time that is watched.
_MEMORY_SHARE = 0.05
# Ends of passes are remembered over so many looks.
_MOST_MOMENTS = 4096
_LONGEST = 86400.0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "explain",
        help="this machine's KSM in words",
        description="Say what the machine's KSM does and saves, what its counters hide, in which pass ksmd is and when "
        "that ends. Reads only: nothing is marked, merged or set.",
        epilog="examples:\n"
        "  ksmwalk explain                       in words, after watching ksmd for 2 seconds\n"
        "  ksmwalk explain --watch 5             again every 5 seconds, until Ctrl-C\n"
        "  ksmwalk explain --predicted est.json  beside what `ksmwalk estimate --json` said\n"
        "  ksmwalk explain --openmetrics /var/lib/node_exporter/ksmwalk.prom\n\n"
        "Processes of others are left out without root, and their number said.\n"
        "Exit code: 0, 2 if this kernel has no KSM.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--interval", type=_seconds, default=2.0, metavar="SECONDS",
        help="how long to look at ksmd for its pace (default 2; 0: not at all)",
    )  # fmt: skip
    parser.add_argument(
        "--watch", type=_seconds, nargs="?", const=_WATCH, metavar="SECONDS",
        help="keep it on screen, anew every SECONDS (default 2), until Ctrl-C; with --json a line each time",
    )  # fmt: skip
    parser.add_argument(
        "--openmetrics", metavar="FILE",
        help="write metrics for a node exporter's textfile collector, which reads *.prom, and nothing else "
        "(but with --watch or --json)",
    )  # fmt: skip
    parser.add_argument(
        "--frames", action="store_true",
        help="count the KSM pages that there are in fact (root; a quarter of a second for every 4 GiB of the machine)",
    )  # fmt: skip
    parser.add_argument("--predicted", metavar="FILE", help="compare with an estimate (`ksmwalk estimate --json`)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--root", default="/", help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= _LONGEST:
        raise argparse.ArgumentTypeError(f"{report.printable(text)[:40]}: seconds from 0 to {_LONGEST:.0f} are needed")
    return seconds


def run(args: argparse.Namespace) -> int:
    """Exit code: 0, 2 where there is no KSM."""
    if args.watch is not None and args.watch < _PACE:
        raise ValueError(f"--watch {args.watch:g}: at least {_PACE:g} seconds are needed")
    prediction = explaining.read_prediction(args.predicted) if args.predicted is not None else None
    looking = Looking(Path(args.root), args.frames)
    if not looking.state.available:
        complain("ksmwalk explain", "this kernel has no KSM (no /sys/kernel/mm/ksm)")
        return UNUSABLE
    if args.root == "/" and (note := kernels.here()[1]):
        complain("ksmwalk explain", note)
    if args.watch is None:
        looking.look(args.interval, visible=not args.json)
        _put(args, looking.state, looking.pace(), prediction)
        return FINE
    # Ctrl-C is how this ends
    with contextlib.suppress(KeyboardInterrupt):
        _watch(args, looking, prediction)
    return FINE


class Looking:
    """The machine's KSM, looked at again and again.

    Parameters
    ----------
    root : Path
    frames : bool
        Whether to count frames.

    Attributes
    ----------
    state : KsmState
        As it was last.
    """

    def __init__(self, root: Path, frames: bool = False):
        self.root = root
        self.frames = frames
        self._counted: tuple[int, int] | None = None
        self.seen: list[Moment] = []
        self._since = 0
        self._memory_at = -math.inf
        self._known: dict[int, KsmProcess] = {}
        self._memory_seconds = 0.0
        # who ksmd is must be known before its time is taken
        self.state: KsmState = read_ksm_state(root)

    def look(self, seconds: float, visible: bool = False) -> None:
        """Watch ksmd for some seconds, then read everything."""
        self._since = len(self.seen)
        looks = max(1, min(_MOST_LOOKS, math.ceil(seconds / _PACE))) if seconds else 0
        steps = range(looks)
        with contextlib.closing(progress(steps, "watching ksmd")) if visible else contextlib.nullcontext(steps) as shown:
            self.seen += explaining.moments(self.root, seconds, self.state.ksmd, steps, shown)
        self.state = self._read()

    def pace(self) -> dict[str, Any]:
        """How fast ksmd was in the last look; ends of passes are those of all looks."""
        now = explaining.pace(self.seen[self._since :])
        ever = explaining.pace(self.seen)
        now.update({name: ever[name] for name in ("pass_seconds", "pass_pages", "since_end")})
        self._forget()
        return now

    def _forget(self) -> None:
        """Of the looks before keep those where something happened."""
        if len(self.seen) > _MOST_MOMENTS:
            kept = [
                after
                for before, after in zip(self.seen, self.seen[1:], strict=False)
                if before.full_scans != after.full_scans
            ]
            # an end shows as a difference to the moment before
            self.seen = [self.seen[0], *kept[-_MOST_MOMENTS // 4 :], self.seen[-1]]

    def _read(self) -> KsmState:
        now = time.monotonic()
        memory = now - self._memory_at >= self._memory_seconds / _MEMORY_SHARE
        state = read_ksm_state(self.root, memory=memory, known=self._known)
        if memory and self.frames and state.available:
            began = time.perf_counter()
            self._counted = ksm_frames(self.root)
            state.seconds += time.perf_counter() - began
        state.frames = self._counted
        if memory:
            self._memory_at, self._memory_seconds = time.monotonic(), state.seconds
            self._known = {one.pid: one for one in state.processes}
        return state


def _put(
    args: argparse.Namespace, state: KsmState, seen: dict[str, Any], prediction: dict[str, dict[str, float]] | None
) -> None:
    if args.openmetrics is not None:
        write_whole(args.openmetrics, openmetrics.text(state, seen, prediction).encode(), follow=False)
    if args.json:
        data = explaining.as_json(state, seen, prediction)
        if args.watch is None:
            report.print_json(data)
        else:
            print(json.dumps(data), file=report.output(), flush=True)
    elif args.watch is None and args.openmetrics is None:
        explain_text.show(Screen(), state, seen, prediction)


# ---------------------------------------------------------------- watching


class _Sheet(io.StringIO):
    """Text for a terminal that is not written yet."""

    encoding = "utf-8"

    def __init__(self, like: Screen):
        super().__init__()
        self._terminal = like.terminal
        self.encoding = getattr(like.out, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return self._terminal


def _watch(
    args: argparse.Namespace, looking: Looking, prediction: dict[str, dict[str, float]] | None
) -> None:
    screen = Screen()
    with _display(screen) as display:
        first = True
        while True:
            looking.look(min(args.interval or _PACE, args.watch) if first else args.watch)
            first = False
            seen = looking.pace()
            _put(args, looking.state, seen, prediction)
            # a service that keeps the file fresh has nobody to read the words
            if not args.json and (screen.terminal or args.openmetrics is None):
                display(_drawn(screen, looking.state, seen, prediction))


def _drawn(
    screen: Screen, state: KsmState, seen: dict[str, Any], prediction: dict[str, dict[str, float]] | None
) -> str:
    """Everything as text, as it would be written to the screen, as wide as that is now."""
    sheet = _Sheet(screen)
    on = Screen(sheet)
    on.width = Screen(screen.out).width
    explain_text.show(on, state, seen, prediction)
    return sheet.getvalue()


@contextlib.contextmanager
def _display(screen: Screen) -> Any:
    """What shows a text in place of the one before; without a terminal they come one after another."""
    if not screen.terminal:
        yield lambda text: print(text, file=screen.out, flush=True)
        return
    last = ""

    def lines(text: str) -> list[str]:
        """As many as the terminal has room for."""
        all_lines = text.rstrip("\n").split("\n")
        height = shutil.get_terminal_size().lines
        with contextlib.suppress(OSError):
            height = os.get_terminal_size(screen.out.fileno()).lines
        if len(all_lines) < height or height < 3:
            return all_lines
        return [*all_lines[: height - 2], f"({len(all_lines) - height + 2} more lines: a taller terminal shows them)"]

    if screen.rich:
        with rich.live.Live(screen=True, auto_refresh=False, console=rich.console.Console(file=screen.out)) as live:
            def show(text: str) -> None:
                nonlocal last
                last = text
                live.update(rich.text.Text.from_ansi("\n".join(lines(text)), no_wrap=True), refresh=True)

            try:
                yield show
            except KeyboardInterrupt:
                pass
    else:
        def show_plain(text: str) -> None:
            nonlocal last
            last = text
            print("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines(text)) + "\x1b[J", end="", file=screen.out, flush=True)

        print("\x1b[?1049h\x1b[?25l", end="", file=screen.out)
        try:
            yield show_plain
        except KeyboardInterrupt:
            pass
        finally:
            print("\x1b[?25h\x1b[?1049l", end="", file=screen.out, flush=True)
    # what was there last stays
    print(last, end="", file=screen.out, flush=True)


