"""`Models:` and `Differs:` at the end of a docstring become fields beside its parameters and what it returns.

Napoleon would take them for a part of the section they stand under, so they are taken out before it reads the docstring
and put back when it is done.
"""

import re

_FIELD = re.compile(r"(Models|Differs): ")


def take_out(app, what, name, obj, options, lines):
    """Before napoleon: remember what is modelled and how it differs, and cut it off."""
    first = next((at for at, line in enumerate(lines) if _FIELD.match(line.strip())), None)
    if first is None:
        return
    text = " ".join(line.strip() for line in lines[first:])
    del lines[first:]
    parts = _FIELD.split(text)[1:]
    app.env.temp_data.setdefault("models_differs", {})[what, name] = list(zip(parts[::2], parts[1::2], strict=True))


def put_back(app, what, name, obj, options, lines):
    """After napoleon: as fields, where its own fields are."""
    fields = app.env.temp_data.get("models_differs", {}).pop((what, name), [])
    if not fields:
        return
    while lines and not lines[-1].strip():
        lines.pop()
    if not (lines and lines[-1].lstrip().startswith(":")):
        lines.append("")
    lines += [f":{field}: {text.strip()}" for field, text in fields]
    lines.append("")


def setup(app):
    app.connect("autodoc-process-docstring", take_out, priority=100)
    app.connect("autodoc-process-docstring", put_back, priority=900)
    return {"parallel_read_safe": True}
