"""What the docstrings of this package say that napoleon does not understand, put into words it does.

``Models:`` and ``Differs:`` at the end of a docstring become fields beside its parameters and what it returns; several
attributes described together become one each; a property is read like a function, not as "type: text".
"""

import enum
import re

from sphinx.domains.python import PyObject
from sphinx.ext.napoleon import NumpyDocstring

_FIELD = re.compile(r"(Models|Differs): ")
_SEVERAL = re.compile(r"(\w+(?:, \w+)+)( : .*)")
#: made by a Host or by the walk, never by a user
_NOT_CALLED = {"Mm", "Vma", "Frames", "TableArena", "Ksm", "Events", "KsmScan"}


def _apart(lines: list[str]) -> list[str]:
    """Attributes described together, each on its own."""
    out: list[str] = []
    inside = False
    for at, line in enumerate(lines):
        if at + 1 < len(lines) and re.fullmatch(r"-{3,}", lines[at + 1].strip()):
            inside = line.strip() == "Attributes"
        match = _SEVERAL.fullmatch(line) if inside else None
        if match is None:
            out.append(line)
            continue
        text = []
        for further in lines[at + 1 :]:
            if further and not further.startswith(" "):
                break
            text.append(further)
        *first, last = match[1].split(", ")
        for name in first:
            out += [name + match[2], *text]
        out.append(last + match[2])
    return out


def before(app, what, name, obj, options, lines):
    """Before napoleon: remember what is modelled and how it differs, and cut it off."""
    kept = app.env.temp_data.setdefault("models_differs", {}).setdefault((what, name), {})
    first = next((at for at, line in enumerate(lines) if _FIELD.match(line.strip())), None)
    if first is not None:
        parts = _FIELD.split(" ".join(line.strip() for line in lines[first:]))[1:]
        kept["fields"] = list(zip(parts[::2], parts[1::2], strict=True))
        del lines[first:]
    lines[:] = _apart(lines)
    if what in ("property", "attribute"):
        kept["lines"] = str(NumpyDocstring(lines, app.config, app, "method", name, obj, options)).split("\n")
        lines.clear()


def after(app, what, name, obj, options, lines):
    """After napoleon: put it back, the fields where its own fields are."""
    kept = app.env.temp_data.get("models_differs", {}).pop((what, name), {})
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
    made = what == "class" and (name.rpartition(".")[2] in _NOT_CALLED or issubclass(obj, enum.Enum))
    return ("", None) if made else None


def setup(app):
    app.connect("autodoc-process-docstring", before, priority=100)
    app.connect("autodoc-process-docstring", after, priority=900)
    app.connect("autodoc-process-signature", signature)
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    return {"parallel_read_safe": True}
