"""Tests of the tracing: from a model to a graph."""
