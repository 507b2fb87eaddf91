"""Room: weights/factor."""
