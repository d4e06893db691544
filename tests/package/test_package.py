"""The package itself: what is shipped, the public names, docstrings, stubs against run time."""

import ast
import enum
import importlib
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import checkout
import pytest

import ksmwalk

PACKAGE = Path(ksmwalk.__file__).parent
COMPILED = sorted(".".join(p.relative_to(PACKAGE).with_suffix("").parts) for p in PACKAGE.rglob("_*.pyx"))
#: public things that model nothing of Linux, so that "Models:" would be empty words
OURS = {
    "build_info", "get_include", "Host.mm_by_number", "Host.memory", "Host.save", "Host.load", "PageTables.forget_bad",
    "PageTables.save", "PageTables.load", "PageTables.of_world", "KsmScan.reset_work", "Frames.describe",
    "Mm.vma_by_number", "Host.new_object", "Host.drop_object", "Host.check_object", "PageTables.from_image",
}


def public_callables():
    """(name, object) of every public function, class and method."""
    for name in ksmwalk.__all__:
        thing = getattr(ksmwalk, name)
        if inspect.ismodule(thing):
            for inner, f in vars(thing).items():
                if inspect.isfunction(f) and not inner.startswith("_") and f.__module__ == thing.__name__:
                    yield f"{name}.{inner}", f
            continue
        yield name, thing
        if inspect.isclass(thing):
            for inner, f in vars(thing).items():
                if inner.startswith("_"):
                    continue
                if callable(f) or isinstance(f, (classmethod, staticmethod)):
                    yield f"{name}.{inner}", getattr(thing, inner)


def test_all_is_what_is_public():
    assert ksmwalk.__all__ == sorted(ksmwalk.__all__)
    for name in ksmwalk.__all__:
        assert hasattr(ksmwalk, name), name
    ours = {n: v for n, v in vars(ksmwalk).items() if getattr(v, "__module__", "").startswith("ksmwalk")}
    public = {n for n, v in ours.items() if not n.startswith("_") and not inspect.ismodule(v)}
    assert public <= set(ksmwalk.__all__), sorted(public - set(ksmwalk.__all__))


def test_the_names_that_users_were_promised():
    promised = {
        "Host", "PageTables", "MmWalkOps", "MmWalk", "Vma", "KsmScan", "RmapItem", "walk_page_range", "walk_page_vma",
        "walk_page_range_vma", "walk_page_range_novma", "get_include", "build_info",
    }
    assert promised <= set(ksmwalk.__all__)
    host = ksmwalk.Host(64)
    assert isinstance(host.ksm.scan, ksmwalk.KsmScan) and isinstance(host.ksm, ksmwalk.Ksm)
    for name in ("mm_slot", "address", "rmap_list", "seqnr"):
        assert hasattr(host.ksm.scan, name)


def test_build_info_names_the_build():
    info = ksmwalk.build_info()
    assert info["profile"] in ("release", "checked", "trace")
    assert info["version"] == ksmwalk.__version__
    assert all(info[name] for name in ("compiler", "python", "numpy"))


def test_every_public_thing_says_what_it_models():
    silent = []
    for name, thing in public_callables():
        doc = inspect.getdoc(thing) or ""
        if not doc:
            silent.append(f"{name}: no docstring")
        exempt = name in OURS or (inspect.isclass(thing) and issubclass(thing, (enum.Enum, Exception)))
        if not exempt and not ("Models:" in doc and "Differs:" in doc):
            silent.append(f"{name}: no Models:/Differs:")
    assert not silent, "\n".join(silent)


def test_docstrings_begin_with_one_sentence():
    for name, thing in public_callables():
        first = (inspect.getdoc(thing) or "").split("\n\n")[0].strip()
        assert first.endswith((".", ":")), f"{name}: {first!r}"


# ------------------------------------------------------------------ stubs


def stub(module):
    path = PACKAGE / f"{module.replace('.', '/')}.pyi"
    return ast.parse(path.read_text()) if path.exists() else None


def names_of(node):
    """Argument names of a stub's function, self left out."""
    args = node.args
    varargs = [a for a in (args.vararg,) if a]
    names = [a.arg for a in [*args.posonlyargs, *args.args, *varargs, *args.kwonlyargs]]
    return [n for n in names if n not in ("self", "cls")]


@pytest.mark.parametrize("module", COMPILED)
def test_stubs_say_what_there_is_at_run_time(module):
    real = importlib.import_module(f"ksmwalk.{module}")
    visible = {
        name: thing for name, thing in vars(real).items()
        if not name.startswith("_") and (inspect.isroutine(thing) or inspect.isclass(thing))
        and getattr(thing, "__module__", real.__name__) == real.__name__ and not isinstance(thing, enum.EnumMeta)
    }
    tree = stub(module)
    if tree is None:
        assert not visible, f"{module}.pyi is missing, but Python sees {sorted(visible)}"
        return
    told = {n.name: n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    assert set(told) == set(visible)
    for name, node in told.items():
        if isinstance(node, ast.FunctionDef):
            assert names_of(node) == list(inspect.signature(visible[name]).parameters), name
            continue
        cls = visible[name]
        for part in node.body:
            if isinstance(part, ast.FunctionDef):
                assert hasattr(cls, part.name), f"{name}.{part.name}"
            elif isinstance(part, ast.AnnAssign):
                assert hasattr(cls, part.target.id), f"{name}.{part.target.id}"
        members = {n for n in vars(cls) if not n.startswith("_")}
        in_stub = {getattr(p, "name", None) or getattr(getattr(p, "target", None), "id", None) for p in node.body}
        assert members <= in_stub, f"{name}: not in the stub: {sorted(members - in_stub)}"


# ------------------------------------------------------------------ what is shipped


def installed_package():
    """Directory of the package as a program elsewhere on this machine imports it."""
    code = "import ksmwalk, sys; sys.stdout.write(ksmwalk.get_include())"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd="/")
    if done.returncode:
        assert checkout.built(), f"ksmwalk is not installed for {sys.executable}: pip install . first\n{done.stderr}"
        pytest.skip("built in place and not installed: nothing is shipped")
    return Path(done.stdout)


def test_what_an_embedder_and_a_type_checker_need_is_shipped():
    package = installed_package().parent
    there = {str(p.relative_to(package)) for p in package.rglob("*")}
    source = Path(__file__).parents[2] / "ksmwalk"
    patterns = ("*.pxd", "*.pyi", "*.h", "*.hpp", "*.py", "py.typed")
    wanted = {str(p.relative_to(source)) for pattern in patterns for p in source.rglob(pattern)}
    wanted.discard("layout/_layout_table.h")  # read where the package is built, and by nobody after that
    assert {"py.typed", "_core.pxd", "layout/_layout.h", "layout/ksmwalk.h", "layout/ksmwalk.hpp"} <= wanted
    assert wanted <= there, f"not shipped: {sorted(wanted - there)}"


def test_numpy_is_the_only_thing_needed_at_run_time():
    code = (
        "import sys, ksmwalk; host = ksmwalk.Host(64); host.ksm.scan.scan(1)\n"
        "unwanted = {'matplotlib', 'xxhash', 'elftools', 'distributed', 'hypothesis', 'pytest', 'Cython', 'setuptools'}\n"
        "bad = {m.split('.')[0] for m in sys.modules} & unwanted\n"
        "sys.exit(f'imported: {bad}' if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_directive_in_a_source_header():
    """A header would win over the build profile."""
    for path in (Path(__file__).parents[2] / "ksmwalk").rglob("*.p[yx][xd]"):
        head = path.read_text().split("\n", 5)
        assert not any("cython:" in line.replace(" ", "") and line.startswith("#") for line in head[:5]), path.name
