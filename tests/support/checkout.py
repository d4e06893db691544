"""Which ksmwalk is tested: `python -m pytest` in a checkout puts the source tree, built or not, before what is installed."""

import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def built() -> bool:
    """Whether the source tree has its compiled modules in place, for this Python."""
    return any((ROOT / "ksmwalk" / f"_core{end}").exists() for end in EXTENSION_SUFFIXES)


def choose() -> str | None:
    """Take an unbuilt source tree from `sys.path`; return why there is no ksmwalk to test, or None."""
    here = [entry for entry in sys.path if Path(entry or os.curdir).resolve() == ROOT]
    if not built():
        sys.path[:] = [entry for entry in sys.path if entry not in here]
    if find_spec("ksmwalk") is None:
        return "ksmwalk is not installed for this Python, nor built in place: pip install '.[test]', or pip install -e '.[test]'"
    # Programs that the tests start find the ksmwalk that these tests found, not a source tree they happen to stand in.
    os.environ["PYTHONSAFEPATH"] = "1"
    if built() and here and str(ROOT) not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return None
