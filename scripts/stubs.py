"""Generate the Python stubs beside the .proto files; with --check, demand that the committed ones are up to date."""

import argparse
import filecmp
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[1]
PROTOS = ROOT / "protos"
STUB_PATTERNS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(target: Path) -> None:
    """Write every stub below ``target``, in the same folders as the .proto files. Exits if protoc refuses a file."""
    includes = [
        f"-I{PROTOS}",
        f"-I{ROOT / 'third_party' / 'protos'}",
        f"-I{files('grpc_tools').joinpath('_proto')}",
    ]
    bin_folder = Path(sys.executable).parent
    plugins = [
        f"--plugin=protoc-gen-mypy={bin_folder / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={bin_folder / 'protoc-gen-mypy_grpc'}",
    ]
    ours = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("rushes/**/*.proto"))
    outputs = [f"--{kind}_out={target}" for kind in ("python", "grpc_python")]
    typed = [f"--mypy_out=quiet:{target}", f"--mypy_grpc_out=quiet:{target}"]
    for arguments in (
        [*includes, *plugins, *outputs, *typed, *ours],
        [*includes, f"--python_out={target}", f"--pyi_out={target}", "buf/validate/validate.proto"],
    ):
        status = protoc.main(["protoc", *arguments])
        if status != 0:
            raise SystemExit(status)


def stubs(folder: Path) -> set[Path]:
    """Return the stubs below ``folder``, relative to it."""
    return {path.relative_to(folder) for pattern in STUB_PATTERNS for path in folder.rglob(pattern)}


def check() -> int:
    """Return 0 if the committed stubs equal freshly generated ones, else name the files that differ and return 1."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        differing = sorted(
            path
            for path in stubs(fresh) | stubs(PROTOS)
            if not (fresh / path).exists()
            or not (PROTOS / path).exists()
            or not filecmp.cmp(fresh / path, PROTOS / path, shallow=False)
        )
    for path in differing:
        sys.stderr.write(f"protos/{path} is not what its .proto gives: run make protos\n")
    return 1 if differing else 0


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if parser.parse_args().check:
        raise SystemExit(check())
    for path in stubs(PROTOS):
        (PROTOS / path).unlink()
    generate(PROTOS)


if __name__ == "__main__":
    main()
