"""Large finite p: sets of channels brought into line, where sums by channel are blind to them.

For a large p the p-th powers of weights differ by more than the digits of a float64. A channel's N and P agree to all digits as
soon as its strongest entries do, whatever the weak ones say that join a whole set of channels to the rest. So log-scales are
written in other coordinates: moves of sets of channels within which the strongest entries stay as they are. The entries that such
a move changes are all weaker than those, and their sums lose nothing.

In: single entries, as p = inf takes them, and log-scales. Out: log-scales, and how far any are from the answer.
Imports: the other files of `solve/`; numpy and scipy.
"""
