"""Shared set-up of the suite: how much hypothesis may do, and how long it may take."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

# `import hostcheck`, `from reference import walk`, `import fuzz_images`
sys.path[:0] = [str(Path(__file__).parent / folder) for folder in ("", "support", "tools")]
import checkout  # noqa: E402 - found through the line above

if _reason := checkout.choose():
    raise pytest.UsageError(_reason)

settings.register_profile(
    "suite", max_examples=40, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
# Shrinks what it finds and never does the same twice: KSMWALK_HYPOTHESIS=long pytest ...
settings.register_profile(
    "long", max_examples=3000, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile(os.environ.get("KSMWALK_HYPOTHESIS", "suite"))
