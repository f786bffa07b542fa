"""Many processes: which part of which tensor a process holds, and how processes agree.

Nothing here is loaded by `import fxenorm` alone, and nothing here imports torch's distributed tensors: a model that holds
some has imported them.
"""
