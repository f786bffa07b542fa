"""From a command line and a model to everything that is said about it.

In: the arguments, the target. Out: an answer, as JSON and lines, and the files that were asked for. Imports `plan` and what is
below it, and the command's own rooms for targets, checkpoints and arguments.
"""
