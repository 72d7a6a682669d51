"""The command line: `secateurs inspect`, `init`, `compare`, `prune`, `report` and so on."""

from __future__ import annotations


def main() -> None:
    """Run the command line on the arguments of this process."""
    from .app import app

    app(prog_name="secateurs")


__all__ = ["main"]
