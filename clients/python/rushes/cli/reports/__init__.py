"""What a command shows while a generation is made: bars for people, lines for pipes, JSON for machines."""

from rushes.cli.reports.report import Report, open_report

__all__ = ["Report", "open_report"]
