"""The networks of the experiments, each an ordinary module, and the stack of several fully connected ones.

In: a configuration and the shape of its data. Out: a module. It imports torch alone.
"""
