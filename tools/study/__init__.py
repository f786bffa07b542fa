"""The paper's experiments and a study of what balancing does; `tools/reproduce.py` is the command.

In: names of experiments, or configurations. Out: JSON lines, tables, plots. It imports fxenorm by its public names alone.
A configuration (`configuration.py`) is one run; `training.py` trains several that differ in rate and seed alone, as one stack;
`protocol.py` says which runs a cell still needs; `running.py` does them; `report/` reads the records.
"""
