"""What `values/` is of; imported with this project's packages or without."""

from pathlib import Path

VALUES = Path(__file__).parent / "values"
PROMPT = [3, 17, 30, 0, 29, 8, 11]
