"""Tests of whole symmetries: sound, complete, accounted for."""
