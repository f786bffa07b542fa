"""Tests of the architectures of other libraries."""
