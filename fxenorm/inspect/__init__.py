"""The console script ``fxenorm-inspect``: loads a model, analyses it, prints tables or JSON.

In: the command line. Out: a report, and its text. Imports `plan` and all below it.
"""
