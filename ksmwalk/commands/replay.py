"""`ksmwalk replay`: run scenarios in the model, and compare what comes out with recordings.

Records are written and compared as they come; none is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from .. import kernels
from ..errors import KsmwalkError
from ..scenarios.compare import alike, first_difference
from ..scenarios.format import Recording, ScenarioError, load, record_text
from ..scenarios.replay import NotModelled, kernel_of, modelled, stream
from .codes import FAILED, FINE, UNUSABLE, complain
from .profile import version_of
from .report import printable

#: what is wrong with one file, and no reason to leave out the others
WRONG = (ScenarioError, KsmwalkError, OSError, MemoryError)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``replay`` with an argparse subparsers object."""
    parser = subparsers.add_parser(
        "replay",
        help="run scenarios in the model, and compare with recordings",
        description="Run scenarios in the model and print a record after each operation. With --check: compare with "
        "the records in the files. A file that can't be read is named and the others go on. Exit code 1 if any file "
        "differs, has an operation the model lacks or can't be read; 2 if none could.",
        epilog="example: ksmwalk replay --check tests/golden/*.json",
    )
    parser.add_argument("files", nargs="+", metavar="FILE.json", help="scenario or recording")
    parser.add_argument("--check", action="store_true", help="compare with the files' records; exit 1 if any differ")
    parser.add_argument(
        "--kernel", metavar="VERSION", help="the kernel to be, 6.1.192 say (default: that of each recording, else 6.18.44)"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def _compared(recording: Recording, kernel: str | None) -> dict[str, Any]:
    """How one file came out; what either kernel does not show is left out."""
    if (op := modelled(recording.scenario)) is not None:
        return {"agree": False, "not_modelled": op}
    if recording.records is None:
        return {"agree": False, "error": "no records to compare with"}
    theirs = kernel_of(recording)[0]
    ours = theirs if kernel is None else kernels.PROFILES[kernel]
    want, got = alike(recording.records, theirs, stream(recording, ours.version), ours)
    difference = first_difference(want, got, recording.nondet)
    if difference is None:
        return {"agree": True, "records": len(recording.records)}
    return {
        "agree": False,
        "record": difference.index,
        "op": difference.op,
        "fields": [{"field": name, "file": want, "model": got} for name, want, got in difference.fields],
        "text": difference.text("file", "model"),
    }


def _in_words(file: str, result: dict[str, Any]) -> None:
    """Print how one file came out, unless it agrees."""
    file = printable(file)
    if "not_modelled" in result:
        print(f"{file}: not modelled: {record_text(result['not_modelled'])}")
    elif "error" in result:
        print(f"{file}: {result['error']}")
    elif not result["agree"]:
        print(f"{file}: {result['text']}")


class _Files:
    """Goes through the files of one call and counts how they came out."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.agreed = self.bad = self.unusable = 0
        self._written = 0
        self._said = {""}

    def begin(self) -> None:
        if self.args.json:
            sys.stdout.write('{"files": [')

    def end(self) -> None:
        total = len(self.args.files)
        if self.args.json:
            more = f', "agree": {self.agreed}, "of": {total}' if self.args.check else ""
            print(f"]{more}}}")
        elif self.args.check:
            print(f"{self.agreed} of {total} agree")

    def entry(self) -> None:
        """The comma between entries of the JSON."""
        if self._written:
            sys.stdout.write(", ")
        self._written += 1

    def one(self, file: str) -> None:
        """Run or check one file."""
        try:
            recording = load(file)
        except WRONG as error:
            self.broken(file, error)
            return
        if self.args.kernel is None and (note := kernel_of(recording)[1]) not in self._said:
            self._said.add(note)
            complain("ksmwalk replay", note)
        if self.args.check:
            self.check(file, recording)
        else:
            self.write(file, recording)

    def broken(self, file: str, error: Exception, begun: bool = False) -> None:
        """Name what is wrong with a file, in JSON at the end of its entry."""
        self.bad += 1
        self.unusable += 1
        text = _with_file(file, error)
        complain("ksmwalk replay", text)
        if self.args.json:
            if not begun:
                self.entry()
                sys.stdout.write(f'{{"file": {json.dumps(file)}')
            sys.stdout.write(f', "agree": false, "error": {json.dumps(text)}}}')

    def check(self, file: str, recording: Recording) -> None:
        try:
            result = _compared(recording, self.args.kernel)
        except NotModelled as error:
            result = {"agree": False, "not_modelled": error.op}
        except WRONG as error:
            self.broken(file, error)
            return
        self.agreed += result["agree"]
        self.bad += not result["agree"]
        if self.args.json:
            self.entry()
            sys.stdout.write(json.dumps({"file": file, **result}))
        else:
            _in_words(file, result)

    def write(self, file: str, recording: Recording) -> None:
        """Write records as they come: in JSON the file's entry is begun, and ended however that goes."""
        as_json = self.args.json
        if as_json:
            self.entry()
            sys.stdout.write(f'{{"file": {json.dumps(file)}, "name": {json.dumps(recording.scenario.name)}, "records": [')
        elif len(self.args.files) > 1:
            print(f"# {printable(file)}")
        records, comma = stream(recording, self.args.kernel), ""
        while True:
            try:
                record = next(records)
            except StopIteration:
                self.end_of_records(file, {})
                return
            except NotModelled as error:
                self.bad += 1
                self.end_of_records(file, {"agree": False, "not_modelled": error.op})
                return
            except WRONG as error:
                if as_json:
                    sys.stdout.write("]")
                self.broken(file, error, begun=True)
                return
            sys.stdout.write(comma + record_text(record) if as_json else record_text(record) + "\n")
            comma = ", "

    def end_of_records(self, file: str, result: dict[str, Any]) -> None:
        """End what `write` began."""
        if self.args.json:
            sys.stdout.write("]" + "".join(f', "{key}": {json.dumps(value)}' for key, value in result.items()) + "}")
        elif result:
            _in_words(file, result)


def _with_file(file: str, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{file}: {error.strerror}"
    text = str(error) or "not enough memory"
    return text if file in text else f"{file}: {text}"


def run(args: argparse.Namespace) -> int:
    """Carry out ``ksmwalk replay``.

    Parameters
    ----------
    args : argparse.Namespace

    Returns
    -------
    int
        0; 1 where a file differs, is not modelled or can't be read; 2 where none can be read and run.
    """
    args.kernel = version_of("ksmwalk replay", args.kernel)
    files = _Files(args)
    files.begin()
    for file in args.files:
        files.one(file)
    files.end()
    if files.unusable == len(args.files):
        return UNUSABLE
    return FAILED if files.bad else FINE
