"""The guide's page on kernels says what `ksmwalk.kernels` does."""

from pathlib import Path

import pytest

from ksmwalk import kernels

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "kernels.md"


@pytest.mark.skipif(not PAGE.exists(), reason="no documentation beside the tests")
def test_the_tables_are_those_of_the_module():
    text = PAGE.read_text()
    for one in kernels.PROFILES.values():
        names = ", ".join(f"`{switch.name}`" for switch in kernels.Switch if one.switches & switch) or "nothing"
        assert f"| {one.version} | {names} | {one.seen} |" in text
    for switch, sentence in kernels.SWITCHES.items():
        assert f"| `{switch.name}` | {sentence} |" in text
