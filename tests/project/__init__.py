"""Tests of the project itself: package, tools, pages."""
