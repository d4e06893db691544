"""The code blocks of a Markdown page: what they are, what they print, what they need."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

_BLOCK = re.compile(
    r"(?:^<!-- (?P<key>file|needs): (?P<value>\S+) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S
)
_OUTPUT = re.compile(r"\n(?P<like><!-- for example -->\n)?```text\n(?P<text>.*?)^```$", re.M | re.S)


@dataclass
class Block:
    """One fenced block.

    A comment before it says what it is besides: ``<!-- file: NAME -->`` a file of a program, ``<!-- needs: root -->``
    code that only root can run. A ``text`` block right behind it is what it prints, with ``<!-- for example -->`` between
    them but for the numbers.
    """

    language: str
    code: str
    line: int
    file: str | None = None
    needs: str | None = None
    output: str | None = None
    for_example: bool = False


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page with a language, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        said = {match["key"]: match["value"]} if match["key"] else {}
        output = _OUTPUT.match(text, match.end())
        line = text.count("\n", 0, match.start("code")) + 1
        said |= {"output": output["text"], "for_example": bool(output["like"])} if output else {}
        found.append(Block(match["language"], match["code"], line, **said))
    return found


def pages() -> list[Path]:
    """README and every page of the documentation that a person wrote."""
    return [ROOT / "README.md", *sorted(page for page in DOCS.rglob("*.md") if page.name != "verification.md")]
