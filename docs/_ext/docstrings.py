"""What the docstrings of this package say that napoleon does not understand, put into words it does.

``Models:`` and ``Differs:`` at the end of a docstring become fields beside its parameters and what it returns; what
is described together stays together; a property or a constant is read like a function, not as "type: text".
"""

import enum
import re

from docutils import nodes
from sphinx.domains.python import PyObject
from sphinx.ext.napoleon import NumpyDocstring

_FIELD = re.compile(r"(Models|Differs): ")
_SEVERAL = re.compile(r"(\w+(?:, \w+)+)( : .*)?")
#: between names described together: no comma and no white space to napoleon and docutils, both on the page
_GLUE = "\u201a\u200b"
#: made by a Host or by the walk, never by a user
_NOT_CALLED = {"Mm", "Vma", "Frames", "TableArena", "Ksm", "Events", "KsmScan", "RmapItem", "Entry", "MmWalk"}


def _together(lines: list[str]) -> list[str]:
    """Parameters and attributes described together stay so: napoleon would say the same of each."""
    out: list[str] = []
    section = ""
    for at, line in enumerate(lines):
        if at + 1 < len(lines) and re.fullmatch(r"-{3,}", lines[at + 1].strip()):
            section = line.strip()
        match = _SEVERAL.fullmatch(line) if section in ("Parameters", "Attributes") else None
        out.append(match[1].replace(", ", _GLUE) + (match[2] or "") if match else line)
    return out


def before(app, what, name, obj, options, lines):
    """Before napoleon: remember what is modelled and how it differs, and cut it off."""
    kept = app.env.temp_data.setdefault("docstrings", {}).setdefault((what, name), {})
    first = next((at for at, line in enumerate(lines) if _FIELD.match(line.strip())), None)
    if first is not None:
        parts = _FIELD.split(" ".join(line.strip() for line in lines[first:]))[1:]
        kept["fields"] = list(zip(parts[::2], parts[1::2], strict=True))
        del lines[first:]
    lines[:] = _together(lines)
    if what in ("property", "attribute", "data"):
        kept["lines"] = str(NumpyDocstring(lines, app.config, app, "method", name, obj, options)).split("\n")
        lines.clear()


def after(app, what, name, obj, options, lines):
    """After napoleon: put it back, the fields where its own fields are."""
    kept = app.env.temp_data.get("docstrings", {}).pop((what, name), {})
    if "lines" in kept:
        lines[:] = kept["lines"]
    if "fields" in kept:
        while lines and not lines[-1].strip():
            lines.pop()
        if not (lines and lines[-1].lstrip().startswith(":")):
            lines.append("")
        lines += [f":{field}: {text.strip()}" for field, text in kept["fields"]]
        lines.append("")


def signature(app, what, name, obj, options, arguments, returns):
    """No call signature for what nobody calls."""
    if arguments is None:
        return None
    if what == "class" and (name.rpartition(".")[2] in _NOT_CALLED or issubclass(obj, enum.Enum)):
        return "", None
    if arguments:
        # a default that is no Python would be torn apart, a private parameter is nobody's
        arguments = re.sub(r", _\w+:.*?= None(?=[,)])", "", arguments.replace("<factory>", "..."))
    return tuple(part and part.replace("~typing.", "") for part in (arguments, returns))


def unglue(app, doctree):
    for text in list(doctree.findall(nodes.Text)):
        if _GLUE in text:
            text.parent.replace(text, nodes.Text(text.replace(_GLUE, ", ")))


def setup(app):
    app.connect("autodoc-process-docstring", before, priority=100)
    app.connect("autodoc-process-docstring", after, priority=900)
    app.connect("autodoc-process-signature", signature)
    app.connect("doctree-read", unglue)
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    return {"parallel_read_safe": True}
