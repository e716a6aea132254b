"""One outside system per file."""

from pathlib import Path


def pyfunc_source() -> Path:
    """The file MLflow stores as the model's code; a path, because importing it would define a model."""
    return Path(__file__).parent / "pyfunc_model.py"
