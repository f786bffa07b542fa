"""The predicted output noise as a function of the log-scales: its value, derivatives and slopes far away.

In: quantisers with exponents. Out: log J, and the point to which a ridge pulls. Imports objectives/quantisers.
"""
