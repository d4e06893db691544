"""`ksmwalk replay`: run scenarios in the model, and compare what comes out with recordings."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ..scenarios.compare import first_difference
from ..scenarios.format import Recording, ScenarioError, load, record_text
from ..scenarios.replay import NotModelled, modelled, replay


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "replay",
        help="run scenarios in the model, and compare with recordings",
        description="Run scenarios in the model and print a record after each operation. With --check: compare with "
        "the records in the files; exit code 1 if any file differs or has an operation the model lacks.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE.json", help="scenario or recording")
    parser.add_argument("--check", action="store_true", help="compare with the files' records; exit 1 if any differ")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def _check(recording: Recording) -> dict[str, Any]:
    """How one file came out."""
    if (op := modelled(recording.scenario)) is not None:
        return {"agree": False, "not_modelled": op}
    if recording.records is None:
        return {"agree": False, "error": "no records to compare with"}
    difference = first_difference(recording.records, replay(recording), recording.nondet)
    if difference is None:
        return {"agree": True, "records": len(recording.records)}
    return {
        "agree": False,
        "record": difference.index,
        "op": difference.op,
        "fields": [{"field": name, "file": want, "model": got} for name, want, got in difference.fields],
        "text": difference.text("file", "model"),
    }


def _print_check(file: str, result: dict[str, Any]) -> None:
    if "not_modelled" in result:
        print(f"{file}: not modelled: {record_text(result['not_modelled'])}")
    elif "error" in result:
        print(f"{file}: {result['error']}")
    elif not result["agree"]:
        print(f"{file}: {result['text']}")


def run(args: argparse.Namespace) -> int:
    """Exit code: 0, 1 where a file differs or is not modelled, 2 where one can't be read."""
    results = []
    for file in args.files:
        try:
            recording = load(file)
            if args.check:
                results.append({"file": file, **_check(recording)})
                if not args.json:
                    _print_check(file, results[-1])
            else:
                records = replay(recording)
                results.append({"file": file, "name": recording.scenario.name, "records": records})
                if not args.json:
                    if len(args.files) > 1:
                        print(f"# {file}")
                    print("\n".join(map(record_text, records)))
        except NotModelled as error:
            results.append({"file": file, "agree": False, "not_modelled": error.op})
            if not args.json:
                _print_check(file, results[-1])
        except (ScenarioError, OSError) as error:
            print(f"ksmwalk replay: {error}", file=sys.stderr)
            return 2
    bad = [result for result in results if not result.get("agree", True)]
    if args.check:
        agreed = len(results) - len(bad)
        if args.json:
            print(json.dumps({"files": results, "agree": agreed, "of": len(results)}))
        else:
            print(f"{agreed} of {len(results)} agree")
    elif args.json:
        print(json.dumps({"files": results}))
    return 1 if bad else 0
