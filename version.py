"""Version of the pack, the same as in pyproject.toml; records carry it."""

VERSION = "0.1.0"
