"""Tables of what the package says itself, so that no page says it a second time.

``{record-fields} VMA``: the fields of a record dtype of `ksmwalk.layout`, with the comments of `_layout.h`.
``{named-bits} Frame``: the members of an enum of `ksmwalk.layout`, likewise.
``{tunables}``, ``{counters}``: those of KSM, with what they mean.
"""

import enum
import re
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

import ksmwalk
from ksmwalk import layout
from ksmwalk.ksm import sysfs

_STRUCT = re.compile(r"^typedef struct \{\n(.*?)^\} kw_(\w+);", re.M | re.S)
_LINE = re.compile(r"^\s*(?:const )?\w+\s+(?P<names>[^;]+);\s*(?:/\*\s*(?P<comment>.*?)\s*\*/)?", re.S | re.M)


def header() -> str:
    """What is said of bits, codes and records."""
    return "".join((Path(ksmwalk.get_include()) / name).read_text(encoding="utf-8") for name in ("_codes.h", "_layout.h"))


def comment(constant: str) -> str:
    """What `_codes.h` says right behind a constant."""
    found = re.search(rf"\b{constant}\b(?:\s*=\s*\S+?)?,?[ \t]+(?:\w+[ \t]*)?/\*\s*(.*?)\s*\*/", header(), re.S)
    return " ".join(found[1].split()) if found else ""


def prefix(kind: type[enum.IntEnum | enum.IntFlag]) -> str:
    """How the members of an enum begin in `_codes.h`, as a pattern."""
    said = re.search(rf"/\* {kind.__name__}\(\w+\), (\w+):", header())[1]
    # of the codes those that are no errors have no E
    return f"{said}?" if said == "KW_E" else said


def comments() -> dict[str, dict[str, str]]:
    """What `_layout.h` says of each field: by struct (`vma`), by field."""
    text = header()
    found: dict[str, dict[str, str]] = {}
    for body, name in _STRUCT.findall(text):
        for line in _LINE.finditer(body):
            for field in line["names"].split(","):
                meaning = " ".join((line["comment"] or "").replace("\n", " ").split())
                found.setdefault(name, {})[re.sub(r"[\s*]|\[.*\]", "", field)] = meaning
    return found


class _Table(SphinxDirective):
    def table(self, head: list[str], rows: list[list[str]], code: int = 1) -> list[nodes.Node]:
        """A table whose first `code` columns are literals."""
        table = nodes.table(classes=["said-once"])
        group = nodes.tgroup(cols=len(head))
        table += group
        for _ in head:
            group += nodes.colspec(colwidth=1)
        for part, lines in ((nodes.thead(), [head]), (nodes.tbody(), rows)):
            for line in lines:
                row = nodes.row()
                for column, cell in enumerate(line):
                    entry = nodes.entry()
                    literal = isinstance(part, nodes.tbody) and column < code and cell
                    entry += nodes.paragraph("", "", nodes.literal(cell, cell) if literal else nodes.Text(cell))
                    row += entry
                part += row
            group += part
        wrapper = nodes.container(classes=["table-wrapper"])
        wrapper += table
        return [wrapper]


class RecordFields(_Table):
    required_arguments = 1

    def run(self):
        name = self.arguments[0]
        dtype = getattr(layout, name)
        said = comments().get(name.lower(), {})
        rows = []
        for field in dtype.names:
            kind, offset = dtype.fields[field][:2]
            shape = "" if kind.shape == () else str(list(kind.shape))
            rows.append([field, kind.base.str.lstrip("<|") + shape, str(offset), said.get(field, "")])
        return self.table(["field", "type", "byte", "meaning"], rows, code=2)


class NamedBits(_Table):
    required_arguments = 1

    def run(self):
        kind = getattr(layout, self.arguments[0])
        shown = hex if issubclass(kind, enum.IntFlag) else str
        rows = [[bit.name, shown(bit.value), comment(prefix(kind) + bit.name)] for bit in kind]
        if not any(row[2] for row in rows):
            return self.table(["name", "value"], [row[:2] for row in rows], code=2)
        return self.table(["name", "value", "meaning"], rows, code=2)


class Tunables(_Table):
    def run(self):
        rows = []
        for name, knob in sysfs.KNOBS.items():
            default = sysfs.ADVISORS[knob.default] if name == "advisor_mode" else str(knob.default)
            rows.append([name, default, getattr(ksmwalk.Ksm, name).__doc__ or ""])
        return self.table(["tunable", "default", "meaning"], rows, code=2)


class Counters(_Table):
    def run(self):
        return self.table(["counter", "meaning"], [[name, row.__doc__ or ""] for name, row in sysfs.COUNTERS.items()])


def setup(app):
    app.add_directive("record-fields", RecordFields)
    app.add_directive("named-bits", NamedBits)
    app.add_directive("tunables", Tunables)
    app.add_directive("counters", Counters)
    return {"parallel_read_safe": True}
