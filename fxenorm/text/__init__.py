"""Puts a plan into words and tables, for ``print(plan)`` and for the inspector.

In: an `Analysis` and a title.
Out: text of several lines.
Imports: analysis and what it imports; reads no weight.
"""
