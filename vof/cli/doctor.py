# SPDX-License-Identifier: BSD-3-Clause
"""``vof doctor``: what this machine can do, and what to do about the rest."""

import argparse

from vof.cli.output import print_json

EPILOG = """levels:
  ok    as it should be
  note  good to know; often nothing is to be done
  warn  works, but badly
  fail  does not work

exit codes:
  0   nothing failed
  1   something failed
  2   wrong usage"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.epilog = EPILOG
    parser.add_argument("--path", metavar="DIR", default="", help="where disk images are to be")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Look, and say what was seen."""
    from vof.cli import checks
    from vof.cli.machine import Machine

    found = checks.findings(Machine(), args.path)
    worst = checks.worst(found)
    if args.json:
        rows = [finding._asdict() for finding in found]
        print_json("doctor", {"path": args.path, "worst": worst, "findings": rows})
    else:
        width = max(len(finding.id) for finding in found)
        for finding in found:
            print(f"{finding.level:<4}  {finding.id:<{width}}  {finding.seen}")
            if finding.todo:
                print(f"{'':{width + 8}}-> {finding.todo}")
    return int(worst == "fail")
