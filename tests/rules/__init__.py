"""Tests of the scale rules, over the tables in rule_cases."""
