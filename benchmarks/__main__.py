"""`make bench`: measure, print and publish. `python -m benchmarks NAME…` measures only the named ones."""

import argparse
import asyncio
import importlib
import sys

from benchmarks.publication import publish, table

SIZED = ("a14b", "a14b_serving", "wan_decoder")
"""Of full size on a GPU, or small on the CPU."""
APART = (*SIZED, "gate", "gateway", "guard", "job_store", "scaling", "second_gateway", "step_cache", "watermark")
"""Measured only when they are named, and published under their own names."""
NAMES = ("denoiser", "stepping", "pools", "postprocess", "quality", "tensor_stream", "relay")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    known = f"any of {', '.join(NAMES)}, by default all of these; or {', '.join(APART)}"
    parser.add_argument("names", nargs="*", metavar="NAME", help=known)
    parser.add_argument("--repeats", type=int, help="rounds of every case")
    parser.add_argument("--small", action="store_true", help=f"{' and '.join(SIZED)} at a size for the CPU")
    arguments = parser.parse_args()
    names = arguments.names or NAMES
    unknown = sorted(set(names) - {*NAMES, *APART})
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}; there are {', '.join((*NAMES, *APART))}")
    given = {} if arguments.repeats is None else {"repeats": arguments.repeats}
    reports = []
    for name in names:
        sys.stderr.write(f"{name} ...\n")
        more = {"small": True} if name in SIZED and arguments.small else {}
        report = asyncio.run(importlib.import_module(f"benchmarks.{name}").measure(**given, **more))
        sys.stdout.write(table(report) + "\n\n")
        if name in APART:
            label = f"{name}-small" if more else name
            sys.stderr.write(f"written to {publish([report], label.replace('_', '-'))}\n")
        else:
            reports.append(report)
    if reports:
        sys.stderr.write(f"written to {publish(reports)}\n")


if __name__ == "__main__":
    main()
