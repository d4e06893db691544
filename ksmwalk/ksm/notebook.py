"""KSM and its counters as notebooks show them."""

from __future__ import annotations

from ..drawing import html
from ..gate import counted
from . import sysfs


class Counters(dict[str, int]):
    """The counters of one moment: a dictionary by the kernel's names, which a notebook shows as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return html.card("KSM", [table(self)])


def table(counters: dict[str, int]) -> str:
    """Counters with what each of them means, as HTML."""
    return html.table(
        ("counter", "", "what it counts"),
        ((name, value, sysfs.COUNTERS[name].__doc__ or "" if name in sysfs.COUNTERS else "") for name, value in counters.items()),
        words=(0, 2),
    )


class ShownKsm:
    """KSM as its counters, and the tunables that are not as the kernel has them."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        assert isinstance(self, sysfs.Files)
        running = ("stopped", "running", "unmerging")[self.run]
        knobs = {name: knob for name, knob in sysfs.KNOBS.items() if self.has(name)}
        others = {name: value for name, knob in knobs.items() if (value := getattr(self, name)) != knob.show(knob.default)}
        set_to = ", ".join(f"{name} = {value}" for name, value in others.items() if name != "run")
        title = f"KSM: {running}, {counted(self.full_scans, 'full scan')}"
        return html.card(title, [html.line(f"tunables: {set_to or 'the defaults'}"), table(self.counters())])
