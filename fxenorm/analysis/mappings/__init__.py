"""Maps of smooth and balance layers for the quantisers that people use, written from the groups of a plan.

In: an `Analysis`, the name of a tool, the classes of the model's modules. Out: `Mappings`. Imports only the files of the folder
above and from below it. No quantiser is imported, and no weight is read.
"""
