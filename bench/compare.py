"""ksmwalk against its rivals, side by side in one run: medians of several rounds and the ratio of each row.

    python bench/compare.py [--json] [--only PART ...]

Rows come from the modules `rows_*.py` beside this file; each has a function `rows()` that yields `measure.Row`s. Root
is not needed; as root there are more rows. KSMWALK_BENCH_SMOKE=1 shrinks everything, to see that it runs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))


def parts() -> list[str]:
    """Names of the modules that have rows, in the order they are run."""
    first = ["walk", "scan", "growth"]
    found = sorted(p.stem.removeprefix("rows_") for p in HERE.glob("rows_*.py"))
    return [p for p in first if p in found] + [p for p in found if p not in first]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--only", nargs="+", choices=parts(), metavar="PART", help=f"of {', '.join(parts())}")
    args = parser.parse_args()
    from measure import note, require_release, text_table

    build = require_release()
    rows = []
    for part in args.only or parts():
        begin = time.perf_counter()
        rows += importlib.import_module(f"rows_{part}").rows()
        note(f"{part}: {time.perf_counter() - begin:.0f} s")
    if args.json:
        json.dump({"build": build, "rows": [r.as_json() for r in rows]}, sys.stdout, indent=1)
        print()
    else:
        print(text_table(rows))
        missed = [r.name for r in rows if r.met is False]
        print(f"\n{sum(r.met is True for r in rows)} goals met, {len(missed)} missed", *missed, sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
