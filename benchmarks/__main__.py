"""`make bench`: measure, print and publish. `python -m benchmarks NAME…` measures only the named ones."""

import argparse
import asyncio
import importlib
import sys

from benchmarks.publication import publish, table

NAMES = ("denoiser", "postprocess", "tensor_stream", "relay")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(NAMES)}; all by default")
    parser.add_argument("--repeats", type=int, help="rounds of every case")
    arguments = parser.parse_args()
    names = arguments.names or NAMES
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    given = {} if arguments.repeats is None else {"repeats": arguments.repeats}
    reports = []
    for name in names:
        sys.stderr.write(f"{name} ...\n")
        report = asyncio.run(importlib.import_module(f"benchmarks.{name}").measure(**given))
        sys.stdout.write(table(report) + "\n\n")
        reports.append(report)
    sys.stderr.write(f"written to {publish(reports)}\n")


if __name__ == "__main__":
    main()
