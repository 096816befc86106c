"""The `caeav` command; `python -m caeav_hf.cli` is the same."""

from .command import build_parser, main


__all__ = ["build_parser", "main"]
