"""Callbacks for trainers; each needs its own library and is imported by its own name only."""
