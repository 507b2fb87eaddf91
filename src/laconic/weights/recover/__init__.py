"""Recovery: win back by training what compression cost."""
