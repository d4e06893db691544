"""pytest-benchmark runs: only the release build is timed."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests" / "support")]

import checkout  # noqa: E402 - found through the line above

if _reason := checkout.choose():
    raise pytest.UsageError(_reason)

from measure import SMOKE, require_release  # noqa: E402 - it imports the ksmwalk chosen above


def pytest_configure(config):
    try:
        require_release()
    except SystemExit as refusal:
        raise pytest.UsageError(str(refusal)) from None
    if SMOKE:
        config.option.benchmark_disable = True
