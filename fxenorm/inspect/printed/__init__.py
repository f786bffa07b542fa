"""Reports as text on a terminal, in a pipe or in a file.

In: a report, as JSON-compatible dicts, and a console. Out: lines. Imports `text`, `symmetry` and `analysis`; rich.
"""
