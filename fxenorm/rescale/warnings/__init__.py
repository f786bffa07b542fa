"""The warnings of a plan, each given once: training without its optimizer, gradients that were left, copies that drift apart.

In: what a call has looked up.
Out: warnings at the user's own line.
Imports: weights and what it imports; never the rescaler.
"""
