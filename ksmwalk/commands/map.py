"""`ksmwalk map PID`: the address space of a process as text, as a picture or as JSON."""

from __future__ import annotations

import argparse
import shutil

from ..sources import capture
from . import report
from .picture import KINDS, OTHER, Gap, Picture, columns, gap_label, heading, marks, picture, row_label, row_names

LETTERS = "aHKz-"
EMPTY, UNMAPPED = ".", " "
MAX_WIDTH = 100


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "map",
        help="draw the address space of a process",
        description="Draw the address space of a process: what is present and of which kind; big gaps are cut out and "
        "labelled. The process is not disturbed: nothing is faulted in.",
    )
    parser.add_argument("pid", type=int, metavar="PID")
    parser.add_argument("--plot", metavar="FILE.png", help="draw into a file (needs matplotlib: the extra `plot`)")
    parser.add_argument("--rows", type=int, default=24, help="rows at most; more rows cut more gaps (default 24)")
    parser.add_argument("--json", action="store_true", help="print the rows and gaps as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.rows < 1:
        raise ValueError(f"--rows {args.rows}: at least 1 is needed")
    if args.plot:
        from . import plot  # before anything is read: matplotlib may be missing

    drawn = picture(capture(args.pid), args.rows)
    if args.plot:
        plot.address_space(drawn, args.plot)
    if args.json:
        report.print_json(as_json(drawn, args.plot))
    elif args.plot:
        print(f"{args.plot}: {heading(drawn)}")
    else:
        print(text(drawn, min(MAX_WIDTH, shutil.get_terminal_size((MAX_WIDTH, 24)).columns)))
    return 0


def text(drawn: Picture, width: int) -> str:
    """The picture in letters, `width` columns wide."""
    bar = max(16, width - 18)
    lines = [heading(drawn), ""]
    for piece in drawn.pieces():
        if isinstance(piece, Gap):
            lines.append(f"{'':16}  ~~ {gap_label(piece)}")
            continue
        cells = min(bar, piece.size // 4096)
        share, vma = columns(drawn, piece, cells)
        letters = []
        for column in range(cells):
            if share[column].any():
                letters.append(LETTERS[int(share[column].argmax())])
            else:
                letters.append(UNMAPPED if vma[column] < 0 else EMPTY)
        lines.append(f"{piece.start:016x}  {''.join(letters)}")
        lines.append(f"{'':16}  {row_label(piece)}{marks(piece)}")
        names = ", ".join(row_names(piece))
        if names:
            lines.append(f"{'':16}  {names if len(names) <= bar else names[: bar - 3] + '...'}")
    legend = [f"{letter} {kind}" for letter, kind in zip(LETTERS, KINDS, strict=True)]
    lines += ["", ", ".join([*legend, f"{EMPTY} mapped, not present"]) + "; ~~ cut out"]
    lines += ["", *drawn.capture.notes] if drawn.capture.notes else []
    return "\n".join(lines)


def as_json(drawn: Picture, plot_file: str | None) -> dict:
    """The picture as plain data; sizes in bytes."""
    what = drawn.capture
    return {
        "pid": what.pid,
        "name": what.name,
        "mapped": sum(vma.size for vma in what.vmas),
        "present": what.nr_pages * 4096,
        "not_eligible": int((drawn.kind == OTHER).sum()) * 4096,
        "plot": plot_file,
        "notes": what.notes,
        "pieces": [
            {"gap": True, "start": piece.start, "end": piece.end, "mapped": piece.mapped}
            if isinstance(piece, Gap)
            else {
                "gap": False,
                "start": piece.start,
                "end": piece.end,
                "present": {kind: int(n) * 4096 for kind, n in zip(KINDS, piece.pages, strict=True)},
                "names": row_names(piece),
                "mergeable": any(vma.mergeable for vma in piece.vmas),
            }
            for piece in drawn.pieces()
        ],
    }

