"""pytest-benchmark runs: only the release build is timed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest
from measure import SMOKE, require_release


def pytest_configure(config):
    try:
        require_release()
    except SystemExit as refusal:
        raise pytest.UsageError(str(refusal)) from None
    if SMOKE:
        config.option.benchmark_disable = True
