"""Tests of plans as objects."""
