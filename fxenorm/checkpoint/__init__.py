"""Balances checkpoints on disk that need not fit into memory: one component of the groups at a time.

In: safetensors files, and the model that they belong to, on the meta device.
Out: files of the same tensors, sharding and metadata, with balanced weights.
Imports: plan, rescale, text and what these import; never inspect or integrations.
"""
