"""Words and tables: what ``print(plan)`` shows, and the wording that the inspector shares with it.

In: an `Analysis` and a title.
Out: text of several lines.
Imports: analysis and what it imports; reads no weight.
"""
