"""Room: weights/equalize."""
