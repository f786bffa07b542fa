"""Holds `analyze`, `Plan` and `canonical` for users; a face, whose work is done in rescale and below.

In: a module and the options of `fxenorm.analyze`.
Out: a `Plan`.
Imports: rescale, verify, text, symmetry, trace and what these import; never inspect or integrations.
"""
