"""Tests of fxenorm-inspect."""
