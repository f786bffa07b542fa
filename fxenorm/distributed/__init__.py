"""Many processes: which part of which tensor a process holds, and how processes agree.

In: tensors of one process, or words about its next step. Out: sums and agreements of all. Imports nothing of fxenorm but
`errors`.

Nothing here is loaded by `import fxenorm` alone, and nothing here imports torch's distributed tensors: a model that holds
some has imported them.
"""
