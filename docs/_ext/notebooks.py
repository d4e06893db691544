"""Pages made of notebooks: `NOTEBOOKS` says which page is which notebook, with the outputs that it is kept with."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = {"guide/tutorial": ROOT / "examples" / "tutorial.ipynb"}


def fenced(kind: str, text: str) -> str:
    return f"\n````{kind}\n{text.rstrip()}\n````\n"


def shown(output: dict) -> str:
    """One output of a cell, in the richest form that it has."""
    if output["output_type"] == "stream":
        return fenced("text", "".join(output["text"]))
    data = {kind: "".join(value) for kind, value in output.get("data", {}).items()}
    for kind in ("image/svg+xml", "text/html"):
        if kind in data:
            html = data[kind][data[kind].find("<svg") :] if kind == "image/svg+xml" else data[kind]
            return fenced("{raw} html", f'<div class="output">{html}</div>')
    return fenced("text", data["text/plain"]) if "text/plain" in data else ""


def as_markdown(notebook: Path) -> str:
    """A notebook as a Markdown page."""
    parts = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source + "\n")
        else:
            parts += [fenced("python", source), *map(shown, cell["outputs"])]
    return "\n".join(parts)


def put_in(app, name, source):
    if name in NOTEBOOKS:
        app.env.note_dependency(NOTEBOOKS[name])
        source[0] = source[0] + "\n" + as_markdown(NOTEBOOKS[name])


def setup(app):
    app.connect("source-read", put_in)
    return {"parallel_read_safe": True}
