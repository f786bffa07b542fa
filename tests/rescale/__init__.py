"""Tests of step, balance and attach."""
