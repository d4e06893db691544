"""What the README and the guide show is run: Python, scenarios, command lines, Cython."""

import contextlib
import doctest
import enum
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import guidecode
import numpy as np
import pytest

import ksmwalk
from ksmwalk import layout, sources
from ksmwalk.commands import verification_page
from ksmwalk.commands.cli import build_parser
from ksmwalk.kernel import knobs, worker
from ksmwalk.proc.errors import ProcessChanged
from ksmwalk.scenarios import format as scenario_format
from ksmwalk.scenarios import records as scenario_records
from ksmwalk.scenarios.kinds import UFFD_BITS
from ksmwalk.scenarios.ops import OPS
from ksmwalk.scenarios.replay import replay

pytestmark = pytest.mark.skipif(not guidecode.DOCS.is_dir(), reason="the documentation is not beside these tests")

PAGES = guidecode.pages()
NAMES = [str(page.relative_to(guidecode.ROOT)) for page in PAGES]
ROOT_PAGES = [page for page in PAGES if any(block.needs == "root" for block in guidecode.blocks(page))]
CODE_PAGES = [page for page in PAGES if any(block.language == "python" for block in guidecode.blocks(page))]


def printed_as_said(block, printed, page):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    said, came = block.output, printed
    if block.for_example:
        said, came = (re.sub(r"\b(?:0x[0-9a-f]+|[0-9][0-9,.]*)\b", "N", text) for text in (said, came))
    same = doctest.OutputChecker().check_output(said, came, flags)
    assert same, f"{page.name}:{block.line} prints\n{printed}\nand not\n{block.output}"


def run_blocks(page, found, namespace):
    for block in found:
        printed = io.StringIO()
        # Empty lines before it: a traceback names the line of the page.
        code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        if block.output is not None:
            printed_as_said(block, printed.getvalue(), page)


@pytest.mark.parametrize("page", CODE_PAGES, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = [block for block in guidecode.blocks(page) if block.language == "python" and not block.file and not block.needs]
    for attempt in range(3):
        try:
            run_blocks(page, found, {"__name__": "guide"})
            return
        except ProcessChanged as grown:  # a page that reads this very process, whose heap grows for that
            if attempt == 2:
                raise grown
            shutil.rmtree(tmp_path)
            tmp_path.mkdir()
            monkeypatch.chdir(tmp_path)


def why_no_real_ksmd():
    return worker.available() or ("needs root" if os.geteuid() else knobs.why_not())


@pytest.mark.root
@pytest.mark.skipif(why_no_real_ksmd() is not None, reason=str(why_no_real_ksmd()))
@pytest.mark.parametrize("page", ROOT_PAGES, ids=lambda page: page.stem)
def test_the_blocks_that_need_root_run_in_their_place(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = [block for block in guidecode.blocks(page) if block.language == "python" and not block.file]
    last = max(place for place, block in enumerate(found) if block.needs == "root")
    try:
        run_blocks(page, found[: last + 1], {"__name__": "guide"})
    except knobs.KernelUnavailable as reason:  # somebody else has taken it meanwhile
        pytest.skip(str(reason))


def test_every_mark_of_a_block_is_one_that_is_looked_at():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        marks = re.findall(r"<!-- (?:file|needs): .*", text)
        used = [block for block in guidecode.blocks(page) if block.file or block.needs]
        assert len(marks) == len(used), f"{page}: a mark that stands before no block"
        assert text.count("<!-- for example -->") == sum(block.for_example for block in guidecode.blocks(page)), page
        assert all(block.needs in (None, "root") for block in used), page


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_line_is_one_that_the_program_takes(page):
    for block in guidecode.blocks(page):
        if block.language != "sh":
            continue
        for line in block.code.splitlines():
            for command in line.split("#")[0].split("&&"):
                words = shlex.split(command)
                if words[:1] == ["ksmwalk"] and words[1:] != ["--version"]:
                    try:
                        build_parser().parse_args(words[1:])
                    except SystemExit:
                        pytest.fail(f"{page.name}:{block.line}: {command}")


def test_the_example_scenario_gives_the_records_it_is_said_to_give():
    page = guidecode.DOCS / "guide" / "scenarios.md"
    text = page.read_text(encoding="utf-8")
    (block,) = [block for block in guidecode.blocks(page) if block.language == "json"]
    records = replay(scenario_format.scenario_from_json(json.loads(block.code)))
    shown = "\n".join(map(scenario_format.record_text, records))
    assert f"```text\n{shown}\n```" in text


def test_the_scenario_page_names_every_operation_and_no_other():
    text = (guidecode.DOCS / "guide" / "scenarios.md").read_text(encoding="utf-8")
    said = set(re.findall(r'`\["(\w+)"', text))
    assert said == set(OPS)
    for name in said:  # the format has no others: it takes each of them, or only finds its arguments wrong
        try:
            scenario_format.scenario_from_json({"ops": [[name]]})
        except scenario_format.ScenarioError as error:
            assert "no operation of this name" not in str(error)


def test_the_scenario_page_names_every_knob_advice_statistic_and_option():
    text = (guidecode.DOCS / "guide" / "scenarios.md").read_text(encoding="utf-8")
    assert not [name for name in [*scenario_format.KNOBS, *scenario_format.ADVICE] if f"`{name}`" not in text]
    assert ", ".join(scenario_records.STATS) in text
    row = next(line for line in text.splitlines() if line.startswith('| `["mmap"'))
    options = dict.fromkeys(re.findall(r"`(\w+)`", row[row.index("Options") :]), 1) | {"prot": "rw"}
    assert len(options) > 1
    scenario_format.scenario_from_json({"ops": [["spawn", "A"], ["mmap", "A", 1, 1, options]]})
    assert json.dumps(dict.fromkeys(UFFD_BITS, 1)) in next(line for line in text.splitlines() if line.startswith('| `["uffd", '))


def test_the_scenario_page_names_every_page_code_and_event():
    text = (guidecode.DOCS / "guide" / "scenarios.md").read_text(encoding="utf-8")
    table = text[text.index("### Page codes") : text.index("### Events")]
    codes = set(re.findall(r"^\| `([-a-z])N?` \|", table, re.M))
    assert codes == {*scenario_records._LETTER.values(), "-"}
    events = set(re.findall(r"^\| `(\w+) [\w ]+` \|", text, re.M))
    assert events == {event.name.lower() for event in ksmwalk.layout.Event}


def test_every_public_name_is_in_the_reference():
    text = "\n".join(
        page.read_text(encoding="utf-8") for page in (guidecode.DOCS / "api").iterdir() if page.suffix in (".md", ".rst")
    )
    there = set(re.findall(r"auto(?:class|function|exception|module):: ksmwalk\.([\w.]+)\n", text))
    assert not set(ksmwalk.__all__) - there
    assert not {f"sources.{name}" for name in sources.__all__} - there


def test_every_array_record_and_enum_of_the_layout_has_its_place():
    model, page = ((guidecode.DOCS / name).read_text(encoding="utf-8") for name in ("guide/model.md", "api/layout.md"))
    assert not [name for name in layout.ARRAYS if f"`{name}`" not in model]
    kept = {name: getattr(layout, name) for name in layout.__all__}
    assert not [name for name, one in kept.items() if isinstance(one, np.dtype) and f"{{record-fields}} {name}\n" not in page]
    assert not [name for name, one in kept.items() if isinstance(one, enum.EnumType) and f"{{named-bits}} {name}\n" not in page]


def test_the_counterparts_name_functions_that_there_are():
    text = (guidecode.DOCS / "guide" / "counterparts.md").read_text(encoding="utf-8")
    declared = "\n".join(pxd.read_text(encoding="utf-8") for pxd in Path(ksmwalk.__file__).parent.rglob("*.pxd"))
    for head, rows in re.findall(r"^\|(.*)\|\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.M):
        columns = [cell.strip() for cell in head.split("|")]
        if "in C" in columns:
            for row in rows.splitlines():
                cell = row.strip("|").split("|")[columns.index("in C")]
                for name in re.findall(r"`(\w+)`", cell):
                    assert re.search(rf"\b{name}\(", declared), f"{name} is declared in no .pxd"


def test_the_verification_page_says_what_is_not_modelled():
    text = (guidecode.DOCS / "verification.md").read_text(encoding="utf-8")
    assert text.endswith(verification_page.beyond())
    before, _, missing = text.partition("## Not modelled")
    # a live workload that needs it is named there, and that it was skipped
    verified = "\n".join(line for line in before.splitlines() if "| skipped: " not in line)
    for what in ("memory pressure", "readahead of swap", "compaction"):
        assert what not in verified and what in missing


def test_the_links_of_the_readme_are_absolute_and_lead_to_files_that_there_are():
    text = (guidecode.ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    here = "https://github.com/ksmwalk/ksmwalk/blob/main/"
    assert links and all(link.startswith("https://") for link in links)
    assert not [link for link in links if link.startswith(here) and not (guidecode.ROOT / link[len(here) :]).exists()]


def test_the_readme_names_every_dependency_and_fits_a_screen_or_two():
    text = (guidecode.ROOT / "README.md").read_text(encoding="utf-8")
    project = tomllib.loads((guidecode.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = {"extra `" + extra + "`": names for extra, names in project["project"]["optional-dependencies"].items()}
    wanted |= {"always": project["project"]["dependencies"], "build": project["build-system"]["requires"]}
    rows = [row.split("|") for row in text.splitlines() if row.count("|") == 4]
    for where, names in wanted.items():
        said = ",".join(row[1] for row in rows if row[2].strip() == where).replace(" ", "").split(",")
        for name in names:
            bare = re.match(r"[\w-]+", name)[0]
            # what builds the package is in an extra again where a test builds something
            assert bare in said or bare in ("setuptools", "Cython"), f"{bare} ({where}) is not in the README's table"
    assert len(text.splitlines()) <= 90


# ---------------------------------------------------------------- Cython


def run_python(args, folder):
    # -O0: this is about what compiles and links, and it is four times as quick
    env = {**os.environ, "CFLAGS": "-O0 -Werror=incompatible-pointer-types"}
    package = str(Path(ksmwalk.__file__).parents[1])
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), package]))
    env.pop("PYTHONSAFEPATH", None)
    done = subprocess.run([sys.executable, *args], cwd=folder, capture_output=True, text=True, env=env)
    assert done.returncode == 0, f"{' '.join(args)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_consumer_of_the_embedding_page_is_built_and_run(tmp_path):
    page = guidecode.DOCS / "guide" / "embedding.md"
    files = {block.file: block for block in guidecode.blocks(page) if block.file}
    for name, block in files.items():
        (tmp_path / name).write_text(block.code)
    run_python(["setup.py", "-q", "build_ext", "--inplace"], tmp_path)
    printed_as_said(files["use.py"], run_python(["use.py"], tmp_path), page)


def examples_of_contracts():
    """Name of a .pxd -> the code in its comments: what stands four columns further in than prose."""
    found = {}
    for pxd in sorted(Path(ksmwalk.__file__).parent.rglob("*.pxd")):
        code = []
        for line in pxd.read_text(encoding="utf-8").splitlines():
            if line.startswith("#     ") or (code and line == "#"):
                code.append(line[6:])
            elif not line.startswith("#"):
                break
        if any(code):
            found[pxd.stem.strip("_")] = "\n".join(code) + "\n"
    return found


def test_the_examples_in_the_contracts_compile(tmp_path):
    examples = examples_of_contracts()
    assert "walk" in examples
    for name, code in examples.items():
        (tmp_path / f"example_{name}.pyx").write_text(code)
    (tmp_path / "setup.py").write_text(
        "import ksmwalk\nfrom Cython.Build import cythonize\nfrom setuptools import Extension, setup\n"
        f"names = {sorted(examples)!r}\n"
        "modules = [Extension(f'example_{n}', [f'example_{n}.pyx'], include_dirs=[ksmwalk.get_include()]) for n in names]\n"
        "setup(name='examples', ext_modules=cythonize(modules, language_level=3))\n"
    )
    run_python(["setup.py", "-q", "build_ext", "--inplace"], tmp_path)
    assert run_python(["-c", WALK_EXAMPLE], tmp_path).strip() == "(0, 1)"


WALK_EXAMPLE = """
import example_walk, ksmwalk
tables = ksmwalk.PageTables()
tables.map(1 << 30, 5)
print(example_walk.count_pmds(tables._tables, 0, 2 << 30))
"""
