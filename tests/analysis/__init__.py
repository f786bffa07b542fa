"""Tests of groups, pairs, what is counted and what is stored."""
