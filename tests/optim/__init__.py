"""Tests of optimizer state."""
