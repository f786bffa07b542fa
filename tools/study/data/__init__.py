"""The data of the experiments: scikit-learn's digits, and CIFAR-10, MNIST and Fashion-MNIST from files in their own formats.

In: a name and a folder. Out: a `task.Task`: images to train on, to choose rates by, and to test on once.
"""
