"""Files on disk: tensors at their places, an unfinished checkpoint beside its target, renames that belong together.

In: paths of safetensors files, and names of their tensors.
Out: values of single tensors, written where they belong; files and folders that stand complete in their places.
Imports: errors.
"""
