"""What tests with the real ksmd share."""

import pytest

from ksmwalk.kernel import knobs


@pytest.fixture
def free():
    """Nobody else drives KSM now, or soon: else the test is left out."""
    try:
        with knobs.lock(lambda text: None, wait=300):
            if reason := knobs.why_not():
                pytest.skip(reason)
    except knobs.KernelUnavailable as error:
        pytest.skip(str(error))
