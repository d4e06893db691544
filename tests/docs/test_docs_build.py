"""The documentation builds without a warning, and needs nothing from the network."""

import re
import subprocess
import sys
from pathlib import Path

import guidecode
import pytest

import ksmwalk

pytest.importorskip("sphinx", reason="the extra `docs` is not installed")
pytest.importorskip("furo", reason="the extra `docs` is not installed")
pytest.importorskip("myst_parser", reason="the extra `docs` is not installed")
pytestmark = pytest.mark.skipif(not guidecode.DOCS.is_dir(), reason="the documentation is not beside these tests")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("html")
    package = Path(ksmwalk.__file__).parents[1]
    script = f"import sys; sys.path.insert(0, {str(package)!r}); from sphinx.cmd.build import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", script, "-q", "-E", "-W", "--keep-going", "-b", "html", str(guidecode.DOCS), str(out)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_documentation_builds_without_a_warning(built):
    assert (built / "index.html").exists()
    assert (built / "api" / "ksm.html").exists()


def test_the_tutorial_is_shown_with_what_its_cells_show(built):
    text = (built / "guide" / "tutorial.html").read_text(encoding="utf-8")
    assert text.count('<div class="output">') > 10 and 'aria-label="frames"' in text and text.count("<svg") > 5


def test_no_page_loads_anything_from_the_network(built):
    loads = re.compile(r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["'](?:https?:)?//""")
    sheets = re.compile(r"""<link\b[^>]*\brel=["']stylesheet["'][^>]*\bhref=["'](?:https?:)?//""")
    for page in built.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not loads.search(text) and not sheets.search(text), page
    for sheet in built.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_what_is_modelled_stands_beside_what_is_returned(built):
    text = (built / "api" / "ksm.html").read_text(encoding="utf-8")
    assert re.search(r'<dt class="field-\w+">Models<span class="colon">:</span></dt>', text)
    assert "Models: " not in re.sub(r"<[^>]+>", "", text).replace("Models:\n", "")
