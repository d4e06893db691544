"""Predict the CPU time that ksmd takes for live workloads, and let it take it: `python tests/tools/check_costs.py` (root).

The costs are those that `ksmwalk calibrate` kept, or the stored ones, or a file's: --costs FILE. A row a workload.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
import costload

from ksmwalk.commands import report
from ksmwalk.kernel import knobs
from ksmwalk.ksm.costs import Costs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--costs", type=Path, metavar="FILE")
    parser.add_argument("--only", metavar="WORD", default="", help="workloads with this in their name")
    parser.add_argument("-v", "--verbose", action="store_true", help="each scan's work, predicted and measured seconds")
    args = parser.parse_args()
    costs = Costs.load(args.costs)
    print(f"costs {costs.source}, {costs.machine} {costs.release} {costs.date}")
    rows, worst = [], 0.0
    for workload in costload.WORKLOADS:
        if args.only not in workload.name:
            continue
        try:
            seen = costload.look_at(workload, costs, knobs.to_stderr if args.verbose else lambda text: None)
        except knobs.KernelUnavailable as reason:
            print(f"check_costs: {reason}", file=sys.stderr)
            return 2
        each = ", ".join(f"{off:+.0%}" for off in seen.predicted / np.maximum(seen.measured, 1e-9) - 1)
        rows.append([workload.name, f"{seen.measured.sum() * 1e3:.1f}", f"{seen.predicted.sum() * 1e3:.1f}",
                     f"{seen.off:+.1%}", each, "; ".join(seen.differs) or "equal"])  # fmt: skip
        worst = max(worst, abs(seen.off))
    heads = ["workload", "ms measured", "ms predicted", "off", "scan by scan", "counters"]
    print(report.table(heads, rows, right=range(1, 4)))
    print(f"off by {worst:.1%} at most")
    return 0 if worst <= 0.2 else 1


if __name__ == "__main__":
    sys.exit(main())
