"""Executors: |W|^p to channel sums, and log-scales into weights and state."""
