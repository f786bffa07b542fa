"""From a text that names a model to the module: files, modules of packages, and the catalogues of other libraries.

In: the target and the example inputs of the command line. Out: a model, and its inputs. Imports `errors` alone of
fxenorm, and the inputs of the command line; torch and the libraries of models inside functions.
"""
