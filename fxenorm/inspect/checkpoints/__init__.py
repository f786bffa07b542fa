"""Files of weights: read into a model, written balanced or undone, compared.

In: paths of the command line, a model, a plan. Out: weights in the model, whole files, distances. Imports `plan` and what is
below it; safetensors, torch and transformers inside functions.
"""
