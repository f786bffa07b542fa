"""From channel sums to log-scales: pure functions of small tensors."""
