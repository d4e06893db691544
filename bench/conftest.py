"""pytest-benchmark runs: only the release build is timed; calls in groups, with the time a page beside the time a call."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests" / "support")]

import checkout  # noqa: E402 - found through the line above

if _reason := checkout.choose():
    raise pytest.UsageError(_reason)

from measure import SMOKE, require_release  # noqa: E402 - it imports the ksmwalk chosen above

_COLUMNS = ["min", "median", "iqr", "rounds"]


def pytest_configure(config):
    try:
        require_release()
    except SystemExit as refusal:
        raise pytest.UsageError(str(refusal)) from None
    if SMOKE:
        config.option.benchmark_disable = True
    if config.option.benchmark_columns is None:  # not asked for others
        config.option.benchmark_columns = _COLUMNS


@pytest.fixture(autouse=True)
def _in_its_group(request):
    """A row that stands in no group, or does not say how many pages it works on, is refused."""
    bench = request.getfixturevalue("benchmark") if "benchmark" in request.fixturenames else None
    yield
    if bench is not None and not (bench.group and "of" in bench.extra_info):
        pytest.fail('mark it with @pytest.mark.benchmark(group="CALL") and measure with per(benchmark, PAGES)(call)')


def each(bench):
    """What the median of a benchmark comes to for each of its pages: `1.53 ns/page`, or nothing where it has none."""
    said = bench["extra_info"]
    if "of" not in said:
        return ""
    ns = bench["median"] / said["count"] * 1e9
    return f"{f'{ns:,.0f}' if ns >= 100 else f'{ns:.3g}'} ns/{said['of']}"


@pytest.hookimpl(wrapper=True)
def pytest_benchmark_group_stats(config, benchmarks, group_by):
    """Put the time for each page behind the name: the tables of pytest-benchmark have no columns but its own."""
    groups = yield
    for _, rows in groups:
        for name in ("name", "fullname"):
            wide = max(len(row[name]) for row in rows)
            shown = [each(row) for row in rows]
            most = max(map(len, shown))
            for row, text in zip(rows, shown, strict=True):
                row[name] = f"{row[name]:{wide}}  {text:>{most}}".rstrip()
    return groups


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Keep it too."""
    for bench in output_json["benchmarks"]:
        if "of" in bench["extra_info"]:
            bench["extra_info"]["ns"] = bench["stats"]["median"] / bench["extra_info"]["count"] * 1e9


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter):
    if not terminalreporter.config._benchmarksession.disabled:
        terminalreporter.write_line("  ns/page and the like: the median of a call, for each of the pages it works on.")
