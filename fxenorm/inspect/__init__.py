"""``fxenorm-inspect``: load a model, find its rescaling freedom, show it as tables or JSON."""
