"""What users hold: groups, pairs, the objective, and the `Plan` that rescales a model."""
