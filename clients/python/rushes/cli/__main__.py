"""`rushes`, and `python -m rushes.cli`."""

import os
import sys

from rushes.cli.app import app
from rushes.cli.label import label_default


def main() -> None:
    """Run the command that the arguments name; exits with the code that says how it ended (see `exits`)."""
    # The library's own complaints about lost connections are not for users: the client reports what matters.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    as_json = "--json" in sys.argv
    try:
        code = app(label_default(sys.argv[1:]), prog_name="rushes", standalone_mode=False)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (KeyboardInterrupt, BaseException) as failure:  # noqa: BLE001 - every end of the process passes here
        code = _end(failure, as_json=as_json)
    sys.exit(code)


def program() -> None:
    """Be the program `rushes`: run the command, and leave at once when it is done."""
    try:
        main()
    except SystemExit as ended:
        if "torch" not in sys.modules:
            raise
        # Everything is closed; taking thousands of modules apart would only keep the user waiting.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended.code if isinstance(ended.code, int) else 0)


def _end(failure: BaseException, *, as_json: bool) -> int | str | None:
    import asyncio  # noqa: PLC0415 - `--help` does without

    if isinstance(failure, SystemExit):
        return failure.code
    if isinstance(failure, KeyboardInterrupt | asyncio.CancelledError):
        sys.stderr.write("" if as_json else "rushes: cancelled\n")
        return 130
    if not isinstance(failure, Exception) or os.environ.get("RUSHES_DEBUG"):
        raise failure
    from rushes.cli.exits import ending_of  # noqa: PLC0415 - it imports grpc, which most failures do not need

    ending = ending_of(failure)
    if as_json:
        from rushes.cli.reports.json_lines import print_json  # noqa: PLC0415 - as above

        print_json("error", **ending.facts)
    else:
        sys.stderr.write(f"rushes: {ending.line}\n")
    return ending.code


if __name__ == "__main__":
    program()
