"""Callbacks for training libraries, each optional: Lightning and the Trainer of Transformers.

In: a trainer's calls. Out: a plan that is attached to its optimizers. Imports `plan` and all below it.

Each needs its own library, and is imported by its own name only.
"""
