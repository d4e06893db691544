"""Build of the compiled modules.

One switch, the environment variable KSMWALK_PROFILE, chooses the build profile:

release (default)  what users install: no checks inside the kernels, no debug information
checked            all of Cython's checks, and every array access of ours checked against its bound (KW_CHECK)
trace              line coverage of the .pyx files
asan               checked, under AddressSanitizer and UBSan, with free records poisoned (layout/_poison.h)

The directives are passed from here and never stand in a .pyx header: a header wins over what is passed.

Every profile is built in a folder of its own below build/, where only what changed is made anew: what Cython reads
(a .pyx and the .pxd files it cimports, one through the other), the C headers, the flags and tools.
"""

import json
import os
import runpy
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from Cython import __version__ as cython_version
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

PROFILES = ("release", "checked", "trace", "asan")
PROFILE = os.environ.get("KSMWALK_PROFILE", "release")
if PROFILE not in PROFILES:
    raise SystemExit(f"KSMWALK_PROFILE={PROFILE!r}: not one of {', '.join(PROFILES)}")

CHECKS = PROFILE != "release"
DIRECTIVES = {
    "language_level": 3,
    "embedsignature": True,
    "boundscheck": CHECKS,
    "wraparound": False,
    "initializedcheck": CHECKS,
    "nonecheck": CHECKS,
    "cdivision": not CHECKS,
    "linetrace": PROFILE == "trace",
    "profile": PROFILE == "trace",
}
MACROS = [("KSMWALK_PROFILE", f'"{PROFILE}"')]
if CHECKS:
    MACROS.append(("KSMWALK_CHECKED", "1"))
if PROFILE == "trace":
    MACROS.append(("CYTHON_TRACE_NOGIL", "1"))
# What stands here comes after Python's own flags, which ask for debug information: the last word wins.
# Nothing is thrown through this code, so it needs no tables to be unwound by: a twentieth of the wheel.
CFLAGS = {
    "release": ["-O3", "-fno-semantic-interposition", "-fno-asynchronous-unwind-tables", "-g0"],
    "checked": ["-O1", "-g"],
    "trace": ["-O0", "-g"],
    "asan": ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
}[PROFILE]
LDFLAGS = {
    "release": ["-Wl,-s,--build-id=none"],
    "asan": ["-fsanitize=address,undefined"],
}.get(PROFILE, [])
# What stands between Python and the loops of other modules, with Cython's own code for buffers, and what holds a Host against
# its rules as it is loaded: small rather than fast, for the wheel's sake. None has a loop that is run for every page of a scan.
SMALL = {
    "_advice", "_asking", "_capsule", "_check", "_check_frames", "_check_swap", "_domains", "_doors", "_heap", "_lackey",
    "_load", "_nodes", "_takeover", "_touched", "_watched",
}

# a static program without libc at a fixed high address: everything below is free for scenarios
WORKER_FLAGS = (
    "-O2 -Wall -Wextra -static -nostdlib -ffreestanding -fno-pie -no-pie -mcmodel=large -mgeneral-regs-only"
    " -fno-stack-protector -fno-asynchronous-unwind-tables -fcf-protection=none"
    " -Wl,-Ttext-segment=0x7ff000000000,--build-id=none,-z,noexecstack,-z,norelro,-s"
).split()

HERE = Path(__file__).resolve().parent
INCLUDE = "ksmwalk/layout"


def build_folder() -> Path:
    """Where this profile is built for this Python and machine; two of them never share an object file."""
    return Path("build", f"{PROFILE}{sysconfig.get_config_var('EXT_SUFFIX').removesuffix('.so')}")


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")


def require_compiler():
    """Say at once, and not after Cython's half minute, that there is nothing to compile with."""
    cc = compiler()
    how = "install gcc or clang (Debian: apt install gcc; Fedora: dnf install gcc), or name a compiler in CC"
    if shutil.which(cc[0]) is None:
        raise SystemExit(f"ksmwalk needs a C compiler, and {cc[0]!r} is not there: {how}")
    with tempfile.TemporaryDirectory() as folder:

        def compiles(text: str) -> subprocess.CompletedProcess:
            source = Path(folder, "trial.c")
            source.write_text(text)
            include = sysconfig.get_path("include")
            command = [*cc, f"-I{include}", "-c", str(source), "-o", str(source.with_suffix(".o"))]
            return subprocess.run(command, capture_output=True, text=True)

        if compiles("#include <Python.h>\n").returncode == 0:
            return
        done = compiles("int one(void) { return 1; }\n")
    if done.returncode:
        raise SystemExit(f"ksmwalk needs a C compiler, and {shlex.join(cc)!r} compiles nothing: {done.stderr.strip()}\n{how}")
    raise SystemExit(
        f"ksmwalk needs Python's C headers, and {shlex.join(cc)!r} finds no Python.h in {sysconfig.get_path('include')}:"
        " install them (Debian: apt install python3-dev; Fedora: dnf install python3-devel)"
    )


class BuildPy(build_py):
    """build_py into an empty folder: a module that was renamed since the last build here must not be shipped again."""

    def run(self):
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib, "ksmwalk"), ignore_errors=True)
        super().run()


class BuildExt(build_ext):
    """build_ext that makes only what changed, and builds the bare worker of the kernel room."""

    def finalize_options(self):
        super().finalize_options()
        # One compiler a core: the modules are independent.
        self.parallel = self.parallel or os.cpu_count()

    def run(self):
        require_compiler()
        wanted_lib, folder = self.build_lib, build_folder()
        self.build_lib, self.build_temp = str(folder / "lib"), str(folder / "objects")
        stamp, made_with = folder / "made-with.json", self.made_with()
        if not stamp.exists() or stamp.read_text() != made_with:
            stamp.unlink(missing_ok=True)
            self.force = True
        self.generate(folder / "c")
        super().run()
        folder.mkdir(parents=True, exist_ok=True)
        stamp.write_text(made_with)
        made_in, self.build_lib = self.build_lib, wanted_lib
        if not self.inplace:
            for ext in self.extensions:
                name = self.get_ext_filename(ext._full_name)
                target = Path(wanted_lib, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(Path(made_in, name), target)
        self.build_worker()

    def made_with(self) -> str:
        """Everything but the files themselves that decides what comes out."""
        tools = {name: os.environ.get(name, "") for name in ("CC", "CFLAGS", "CPPFLAGS", "LDFLAGS", "LDSHARED")}
        tools |= {"cython": cython_version, "platform": self.plat_name, "python": sysconfig.get_config_var("CFLAGS")}
        return json.dumps([DIRECTIVES, MACROS, CFLAGS, sorted(SMALL), LDFLAGS, tools], indent=1)

    def generate(self, folder: Path):
        """Have Cython write the C files; it knows by itself which .pxd a .pyx reads.

        Cython's own .pxd files are among them, and are new in every isolated build environment. A C file that comes out
        as it was before keeps its date, so that it is not compiled again.
        """
        before = {path: (path.read_bytes(), path.stat()) for path in folder.glob("**/*.c")}
        made = cythonize(
            self.extensions,
            compiler_directives=DIRECTIVES,
            build_dir=str(folder),
            nthreads=os.cpu_count(),
            force=bool(self.force),
            show_all_warnings=False,
            quiet=not self.verbose,
        )
        for path, (text, stat) in before.items():
            if path.exists() and path.read_bytes() == text:
                os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        by_name = {ext.name: ext for ext in made}
        for ext in self.extensions:
            ext.sources = by_name[ext.name].sources

    def build_worker(self):
        """Compile the bare worker; where that can't be done (another machine, no gcc) its use says so, not the install."""
        source = HERE / "ksmwalk" / "kernel" / "worker.c"
        root = HERE if self.inplace else Path(self.build_lib).resolve()
        target = root / "ksmwalk" / "kernel" / "worker"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        if not self.plat_name.endswith("-x86_64"):
            print(f"the worker of ksmwalk.kernel is left out: it is for x86-64, and this is a build for {self.plat_name}")
            return
        made, failures = target.with_suffix(".new"), []
        for cc in (["gcc"], compiler()):
            try:
                done = subprocess.run([*cc, *WORKER_FLAGS, "-o", made, source], capture_output=True, text=True)
            except OSError as error:
                failures.append(str(error))
                continue
            if done.returncode == 0:
                made.replace(target)
                return
            failures.append(f"{shlex.join(cc)}: {done.stderr.strip()}")
        made.unlink(missing_ok=True)
        print("the worker of ksmwalk.kernel is left out:", *failures, sep="\n")


def extensions():
    headers = sorted(str(p) for p in Path(INCLUDE).glob("_*.h"))
    # of the headers for others only the module that fills the table of ksmwalk.h reads one
    own = {"_capsule": [f"{INCLUDE}/ksmwalk.h"]}
    for source in sorted(Path("ksmwalk").glob("**/_*.pyx")):
        yield Extension(
            ".".join(source.with_suffix("").parts),
            [str(source)],
            define_macros=MACROS,
            extra_compile_args=CFLAGS + (["-Os"] if PROFILE == "release" and source.stem in SMALL else []),
            extra_link_args=LDFLAGS,
            include_dirs=[INCLUDE],
            # the headers include each other; which .pxd a module reads is for Cython to know
            depends=headers + own.get(source.stem, []),
        )


if __name__ == "__main__":
    os.chdir(HERE)
    # _layout.pxd and its like, written from _codes.h and _layout.h; it needs neither numpy nor ksmwalk
    runpy.run_path("ksmwalk/layout/generate.py")["main"]()
    modules = list(extensions())
    if not modules:
        raise SystemExit(f"there is no .pyx file in {HERE / 'ksmwalk'}: these sources are incomplete, nothing can be built")
    setup(ext_modules=modules, cmdclass={"build_py": BuildPy, "build_ext": BuildExt})
