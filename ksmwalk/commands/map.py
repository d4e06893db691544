"""`ksmwalk map PID`: an address space, a process's or a guest's, as text, as a picture or as JSON."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..drawing.spaces import (
    OTHER,
    PAGE,
    TABLE_KINDS,
    Gap,
    Picture,
    Row,
    columns,
    gap_label,
    heading,
    kinds_label,
    marks,
    parts,
    row_label,
    row_names,
    total,
)
from ..sources import ProcessCapture, capture, guest_tables
from ..sources.pictures import picture
from . import report
from .screen import HelpFormatter, Part, Screen

LETTERS = "aHKz-s"
STYLES = ("blue", "bright_magenta", "green", "yellow", "bright_black", "cyan")
# A cell by the share of its pages that are present: up to a quarter, up to a half, more, every one; then what is mapped
# with nothing present, and what is not mapped. The second set is for terminals that have only letters.
SHADES, PLAIN_SHADES = "░▒▓█· ", ".:+#_ "
_QUARTER, _HALF, _FULL = 0.25, 0.5, 1 - 1e-6
_MARGIN = 18
_USUAL_WIDTH, MAX_WIDTH = 100, 160


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "map",
        help="draw the address space of a process, or what a guest's page tables map",
        description="Draw the address space of a process: how much of it is present and of which kind; big gaps are cut "
        "out and labelled, equal rows folded into one. The process is not disturbed: nothing is faulted in. With --image "
        "draw what the page tables of a guest map, out of an image of its memory.",
        epilog="examples:\n"
        "  ksmwalk map 4711                      as text, as wide as the terminal\n"
        "  ksmwalk map 4711 --plot map.svg       as a picture: .png, .svg or .pdf\n"
        "  ksmwalk map 4711 --rows 60            with more of the gaps cut out\n"
        "  ksmwalk map --image guest.elf         the process that CPU 0 ran as the guest was dumped\n"
        "  ksmwalk map --image ram.raw --cr3 0x1d4e000\n\n"
        "Which pages are KSM's, only root can see; where there are any, also which are shared by fork.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("pid", type=int, metavar="PID", nargs="?")
    guest = parser.add_argument_group("guests")
    guest.add_argument(
        "--image",
        metavar="FILE",
        help="a guest's memory: raw, or ELF as QEMU's dump-guest-memory and kdump write it (needs pyelftools: the extra "
        "`cores`)",
    )
    guest.add_argument(
        "--cr3",
        type=_hexadecimal,
        metavar="HEX",
        help="where its page tables begin (default: as the notes of an ELF image have it)",
    )
    guest.add_argument(
        "--levels", type=int, choices=(4, 5), help="levels of its page tables (default: as the notes have it, else 4)"
    )
    guest.add_argument(
        "--half", choices=("user", "kernel"), help="of the guest's address space (default: user, if anything is mapped there)"
    )
    parser.add_argument(
        "--plot", metavar="PATH", help="draw into this file, .png, .svg or .pdf (needs matplotlib: the extra `plot`)"
    )
    parser.add_argument("--rows", type=int, default=24, help="rows at most; more rows cut more gaps (default 24)")
    parser.add_argument("--json", action="store_true", help="print the rows and gaps as JSON")
    parser.set_defaults(run=run, misused=parser.error)


def run(args: argparse.Namespace) -> int:
    if args.rows < 1:
        raise ValueError(f"--rows {args.rows}: at least 1 is needed")
    if args.pid is None and args.image is None:
        args.misused("PID or --image FILE is required")
    if args.pid is not None and args.image is not None:
        raise ValueError(f"PID {args.pid} and --image: only one of them can be drawn")
    for name in ("cr3", "levels", "half"):
        if args.image is None and getattr(args, name) is not None:
            raise ValueError(f"--{name}: goes with --image FILE")
    if args.plot is not None:
        from . import plot  # before anything is read: matplotlib may be missing

        plot.check(args.plot)
    if args.image is None:
        what = capture(args.pid, counts=True)
        drawn = picture(what, args.rows)
    else:
        what = _of_image(args)
        drawn = picture(what, args.rows, kinds=TABLE_KINDS)
    if args.plot is not None:
        plot.address_space(drawn, args.plot)
    if args.json:
        report.print_json(as_json(what, drawn, args.plot))
        return 0
    screen = Screen()
    if args.plot is not None:
        screen.line(f"{report.printable(args.plot)}: {heading(drawn)}")
        return 0
    shades = SHADES if screen.can_write(SHADES) else PLAIN_SHADES
    for line in text(drawn, min(MAX_WIDTH, screen.width or _USUAL_WIDTH), shades):
        screen.line(*line)
    return 0


def _hexadecimal(text: str) -> int:
    """An address as monitors print it, with or without 0x."""
    value = int(text, 16)
    if not 0 <= value < 1 << 64:
        raise ValueError(text)
    return value


def _of_image(args: argparse.Namespace) -> ProcessCapture:
    """What a guest's page tables map: of the half that is asked for, else of the first that has anything."""
    found = guest_tables(args.image, args.cr3, args.levels)
    if args.half:
        return found.capture(args.half)
    user = found.capture("user")
    return user if user.nr_pages else found.capture("kernel")


def text(drawn: Picture, width: int, shades: str = SHADES) -> Iterator[Sequence[Part]]:
    """The picture in letters, `width` columns wide, line by line."""
    bar = max(16, width - _MARGIN)
    yield [(heading(drawn), "bold")]
    yield []
    for piece in drawn.pieces():
        if isinstance(piece, Gap):
            yield from _labels(f"~~ {gap_label(piece)}", bar, "bright_black")
        else:
            yield from _row(drawn, piece, bar, shades)
    yield []
    whole = total(drawn)
    if whole.any():
        yield [f"{'total':{_MARGIN}}", *_total(whole, bar)]
        yield from _labels(f"{report.size(int(whole.sum()) * PAGE)} present: {kinds_label(whole, drawn.kinds)}", bar)
        yield []
    for words in (_legend(shades, drawn.kinds), *map(report.printable, drawn.notes)):
        yield from ([line] for line in report.wrap(words, width))


def _row(drawn: Picture, row: Row, bar: int, shades: str) -> Iterator[Sequence[Part]]:
    one = row.each
    cells = min(bar, one.size // PAGE)
    share, vma = columns(drawn, one, cells)
    filled, main = share.sum(axis=1), share.argmax(axis=1)
    level = np.select([filled <= _QUARTER, filled <= _HALF, filled < _FULL], [0, 1, 2], 3)
    level[filled == 0] = np.where(vma[filled == 0] < 0, 5, 4)
    styles = [STYLES[kind] if here else "" for kind, here in zip(main, filled > 0, strict=True)]
    yield [f"{row.start:016x}  ", *((shades[at], style) for at, style in zip(level, styles, strict=True))]
    if np.count_nonzero(row.pages) > 1:
        letters = (LETTERS[kind] if here else " " for kind, here in zip(main, filled > 0, strict=True))
        yield [" " * _MARGIN, *zip(letters, styles, strict=True)]
    yield from _labels(row_label(row, drawn.kinds) + marks(row), bar)
    yield from _labels(", ".join(row_names(row)), bar, "bright_black")


def _labels(words: str, bar: int, style: str = "") -> Iterator[Sequence[Part]]:
    """Words beside nothing, broken where the bars end."""
    for line in report.wrap(words, bar):
        yield [" " * _MARGIN, (line, style)]


def _total(pages: np.ndarray, bar: int) -> Iterator[Part]:
    for kind, cells in enumerate(parts(pages, bar).tolist()):
        yield (LETTERS[kind] * cells, STYLES[kind])


def _legend(shades: str, names: tuple[str, ...]) -> str:
    quarter, half, more, every, empty = tuple(shades)[:5]
    kinds = ", ".join(f"{letter} {kind}" for letter, kind in zip(LETTERS, names, strict=False))
    return (
        f"Of a cell's pages are present: {quarter} up to a quarter, {half} up to a half, {more} more, {every} all; "
        f"{empty} mapped, nothing present; ~~ cut out. Kinds, by most of a cell: {kinds}."
    )


def as_json(what: ProcessCapture, drawn: Picture, plot_file: str | None) -> dict[str, Any]:
    """The picture as plain data; sizes in bytes."""
    return {
        "pid": what.pid or None,
        "name": what.name,
        "mapped": sum(vma.size for vma in what.vmas),
        "present": what.nr_pages * PAGE,
        "present_by_kind": _by_kind(total(drawn), drawn.kinds),
        "not_eligible": int(total(drawn)[OTHER]) * PAGE,
        "plot": plot_file,
        "notes": what.notes,
        "pieces": [
            {"gap": True, "start": piece.start, "end": piece.end, "mapped": piece.mapped}
            if isinstance(piece, Gap)
            else {
                "gap": False,
                "start": piece.start,
                "end": piece.end,
                "times": piece.times,
                "stride": piece.stride,
                "present": _by_kind(piece.pages, drawn.kinds),
                "names": row_names(piece),
                "mergeable": any(vma.mergeable for vma in piece.vmas),
            }
            for piece in drawn.pieces()
        ],
    }


def _by_kind(pages: np.ndarray, kinds: tuple[str, ...]) -> dict[str, int]:
    return {kind: int(n) * PAGE for kind, n in zip(kinds, pages, strict=False)}
