"""Build of the compiled modules.

One switch, the environment variable KSMWALK_PROFILE, chooses the build profile:

release (default)  what users install: no checks inside the kernels
checked            all of Cython's checks, and every array access of ours checked against its bound (KW_CHECK)
trace              line coverage of the .pyx files

The directives are passed from here and never stand in a .pyx header: a header wins over what is passed.
"""

import os
import subprocess
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

PROFILES = ("release", "checked", "trace")
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
CFLAGS = {
    "release": ["-O3", "-fno-semantic-interposition"],
    "checked": ["-O1", "-g"],
    "trace": ["-O0", "-g"],
}[PROFILE]

# a static program without libc at a fixed high address: everything below is free for scenarios
WORKER_FLAGS = (
    "-O2 -Wall -Wextra -static -nostdlib -ffreestanding -fno-pie -no-pie -mcmodel=large -mgeneral-regs-only"
    " -fno-stack-protector -fno-asynchronous-unwind-tables -fcf-protection=none"
    " -Wl,-Ttext-segment=0x7ff000000000,--build-id=none,-z,noexecstack,-z,norelro"
).split()

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "ksmwalk" / "layout"))
import generate  # noqa: E402 - the generator of _layout.pxd and its like: needs neither numpy nor ksmwalk

generate.main()
STAMP = HERE / "build" / "profile"


def profile_changed() -> bool:
    """Whether the last build here was of another profile, so that everything must be made anew."""
    return not STAMP.exists() or STAMP.read_text() != PROFILE


class BuildExt(build_ext):
    """build_ext that regenerates on a profile change and builds the bare worker of the kernel room."""

    def finalize_options(self):
        super().finalize_options()
        # One compiler a core: the modules are independent.
        self.parallel = self.parallel or os.cpu_count()

    def run(self):
        if profile_changed():
            self.force = True
        super().run()
        self.build_worker()
        STAMP.parent.mkdir(exist_ok=True)
        STAMP.write_text(PROFILE)

    def build_worker(self):
        """Compile the bare worker; where that can't be done (another machine, no gcc) its use says so, not the install."""
        source = HERE / "ksmwalk" / "kernel" / "worker.c"
        root = HERE if self.inplace else Path(self.build_lib).resolve()
        target = root / "ksmwalk" / "kernel" / "worker"
        target.parent.mkdir(parents=True, exist_ok=True)
        made = target.with_suffix(".new")
        try:
            subprocess.run(["gcc", *WORKER_FLAGS, "-o", made, source], check=True)
            made.replace(target)
        except (OSError, subprocess.CalledProcessError) as error:
            made.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
            print(f"the worker of ksmwalk.kernel is left out: {error}", file=sys.stderr)


def extensions():
    contracts = [str(p.relative_to(HERE)) for end in ("pxd", "h") for p in HERE.glob(f"ksmwalk/**/*.{end}")]
    for path in sorted(HERE.glob("ksmwalk/**/_*.pyx")):
        source = path.relative_to(HERE)
        yield Extension(
            ".".join(source.with_suffix("").parts),
            [str(source)],
            define_macros=MACROS,
            extra_compile_args=CFLAGS,
            include_dirs=["ksmwalk/layout"],
            depends=contracts,
        )


setup(
    ext_modules=cythonize(
        list(extensions()),
        compiler_directives=DIRECTIVES,
        build_dir=f"build/cython-{PROFILE}",
        show_all_warnings=False,
    ),
    cmdclass={"build_ext": BuildExt},
)
