"""Draw docs/growth.png: time of a full scan of the same pages, by span and by populated tables (extra `plot`)."""

from __future__ import annotations

import argparse
from pathlib import Path

import rows_growth
from measure import require_release


def draw(points: list[rows_growth.Point], per_lookup: float, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (by_span, by_tables) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    ms = [1e3 * p.engine for p in points]
    kernel = [(p, 1e3 * p.kernel) for p in points if p.kernel]
    spans = [p.span for p in points]
    by_span.loglog(spans, ms, "o-", label="ksmwalk, range walk", color="C0")
    if kernel:
        by_span.loglog([p.span for p, _ in kernel], [t for _, t in kernel], "s-", label="PAGEMAP_SCAN", color="C1")
    before = [1e3 * p.lookups * per_lookup for p in points]
    by_span.loglog(spans, before, "--", label=f"one address at a time ({per_lookup * 1e9:.0f} ns each)", color="C3")
    by_span.set_xticks([1 << n for n in range(30, 46, 3)], [rows_growth.size(1 << n) for n in range(30, 46, 3)])
    by_span.minorticks_off()
    by_span.set_xlabel("span of the mapping")
    by_span.set_ylabel("time of a full scan, ms")
    by_span.set_title(f"The same {rows_growth.PAGES:,} pages, spread ever wider")
    by_span.legend()
    by_tables.plot([p.tables for p in points], ms, "o-", color="C0", label="ksmwalk, range walk")
    if kernel:
        by_tables.plot([p.tables for p, _ in kernel], [t for _, t in kernel], "s-", color="C1", label="PAGEMAP_SCAN")
    by_tables.set_xlabel("populated page tables")
    by_tables.set_ylabel("time of a full scan, ms")
    by_tables.set_ylim(bottom=0)
    by_tables.set_title("What the time follows is the tables")
    by_tables.legend()
    for axes in (by_span, by_tables):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent.parent / "docs" / "growth.png")
    args = parser.parse_args()
    require_release()
    import hosts
    from measure import medians

    host = hosts.sparse_host(1 << 32, strategy="per-address")
    host.ksm.scan.real_lookups = True
    per_lookup = medians({"scan": lambda: hosts.full_scan(host)}, rounds=3)["scan"] / (1 << 20)
    draw(rows_growth.points(), per_lookup, args.output)
    print(args.output)


if __name__ == "__main__":
    main()
