"""The command line of ``fxenorm-inspect``: its options, their table, its help.

In: texts that a user types. Out: checked values. Imports nothing of torch and little of Python, so that ``--help`` stays fast;
of fxenorm the version and the glossary alone.
"""
