"""The report of a run: one static page that opens from disk."""

from .build import load_config, write_report

__all__ = ["load_config", "write_report"]
