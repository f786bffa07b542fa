"""The HTML report: one file that works offline, with the pair graph as a picture, tables and charts.

In: a plan and the answer of `report`.
Out: the text of a page.
Imports: plan, picture and what these import; jinja2 and bokeh (the extra "report") when a page is made.
"""
