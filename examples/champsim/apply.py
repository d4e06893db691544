"""Put the memory with merged pages into a copy of ChampSim: its files in, and the calls of ksm_hooks.h at named places.

    python apply.py CHAMPSIM

CHAMPSIM is changed; give it a copy. ChampSim is Apache-2.0, (c) The ChampSim Contributors; nothing of it is kept here but the
words that say where a line goes. Written for commit 2ff2501; where a place is not found exactly once nothing is changed.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: file of ours -> its place in ChampSim
FILES = {
    "vmem.h": "inc/vmem.h",
    "ksm_hooks.h": "inc/ksm_hooks.h",
    "shared_memory.hpp": "inc/shared_memory.hpp",
    "vmem.cc": "src/vmem.cc",
    "ksm_hooks.cc": "src/ksm_hooks.cc",
}
#: file of ChampSim, words that stand there once, what comes in front of or behind them
EDITS = [
    ("inc/cache.h", "class CACHE : public champsim::operable\n{\n", "", "  friend struct ::ksm_hooks;\n"),
    ("inc/cache.h", "class CACHE : public champsim::operable\n", "struct ksm_hooks;\n\n", ""),
    ("inc/ptw.h", "  std::deque<mshr_type> MSHR;\n", "  friend struct ::ksm_hooks;\n", ""),
    ("inc/ptw.h", "class PageTableWalker : public", "struct ksm_hooks;\n\n", ""),
    ("inc/ooo_cpu.h", "  friend class O3_CPU;\n\npublic:\n  CacheBus(", "  friend struct ::ksm_hooks;\n", ""),
    ("inc/ooo_cpu.h", "class CacheBus\n", "struct ksm_hooks;\n\n", ""),
    ("src/cache.cc", '#include "cache.h"\n', "", '#include "ksm_hooks.h"\n'),
    (
        "src/cache.cc",
        "bool CACHE::try_hit(const tag_lookup_type& handle_pkt)\n{\n",
        "",
        "  if (lower_translate != nullptr)\n    ksm_hooks::used(handle_pkt.cpu, handle_pkt.v_address, handle_pkt.address);\n",
    ),
    ("src/ooo_cpu.cc", '#include "ooo_cpu.h"\n', "", '#include "ksm_hooks.h"\n'),
    ("src/ooo_cpu.cc", "this->do_complete_store(x)", "", " && ksm_hooks::store(this->cpu, x.virtual_address)"),
    ("src/champsim.cc", '#include "environment.h"\n', "", '#include "ksm_hooks.h"\n'),
    ("src/champsim.cc", "  // Read from trace\n", "  ksm_hooks::operate(global_clock.now());\n\n", ""),
    (
        "src/champsim.cc",
        "  champsim::chrono::clock global_clock;\n  std::vector<phase_stats> results;\n",
        "  if (!phases.empty())\n    ksm_hooks::connect(env, phases.front().trace_names);\n\n",
        "",
    ),
    ("src/champsim.cc", "  return results;\n", "  ksm_hooks::report();\n\n", ""),
]


def apply(champsim: Path) -> None:
    """Change this copy of ChampSim, or nothing of it."""
    texts: dict[Path, str] = {}
    for name, words, before, after in EDITS:
        path = champsim / name
        text = texts.get(path) or path.read_text(encoding="utf-8")
        if text.count(words) != 1:
            raise SystemExit(f"{path}: {text.count(words)} places with {words!r}, not one: is this commit 2ff2501, unchanged?")
        texts[path] = text.replace(words, before + words + after)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    for ours, place in FILES.items():
        shutil.copyfile(HERE / ours, champsim / place)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1], "inc", "vmem.h").exists():
        raise SystemExit("usage: python apply.py CHAMPSIM (a copy of it, which is changed)")
    apply(Path(sys.argv[1]))
