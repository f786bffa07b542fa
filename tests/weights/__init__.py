"""Tests of tensors that are read, followed and written."""
