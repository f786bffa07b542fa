"""The pair graph as a picture: layers as boxes in graph order, groups as lines that join writers and readers.

In: an `Analysis`.
Out: a `Picture`, its positions, and its drawing as SVG or by matplotlib.
Imports: analysis, text and what these import; reads no weight.
"""
