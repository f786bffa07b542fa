"""p = inf: the max-balanced log-scales, for which the sorted entries are lexicographically least.

Max-balanced: for every set of channels, the largest entry in equals the largest entry out. Sweeps ask this of single channels
alone, which residual streams leave many answers to; there is one answer for all sets, and it is the limit of large p.

In: the largest entries in and out of each variable, and answers to the question which others are larger than some level.
Out: log-scales, and the residual, which says how far any log-scales are from the answer.
Imports: the other files of `solve/`; numpy and scipy.
"""
