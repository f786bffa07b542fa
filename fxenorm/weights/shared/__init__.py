"""One model on several processes: a part on each (fully_shard, tensor parallel), or a copy on each (replicas).

In: an `Analysis`, a model's tensors, and the processes.
Out: this process's part of the objective, sums of all processes, and the agreements of replicas.
Imports: analysis, solve, kernels, distributed; never weights itself.
"""
