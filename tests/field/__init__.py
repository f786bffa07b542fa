"""Tests of scale fields and their equations."""
