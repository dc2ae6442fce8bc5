import subprocess
import sys

HEAVY = {"torch", "numpy", "transformers", "diffusers", "typer", "rich", "pydantic", "opentelemetry", "services"}


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after the code."""
    program = f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_the_client_loads_only_grpc_and_protobuf() -> None:
    assert not loaded_after("import rushes.client") & HEAVY


def test_the_check_itself_sees_a_heavy_import() -> None:
    assert "numpy" in loaded_after("import numpy")
