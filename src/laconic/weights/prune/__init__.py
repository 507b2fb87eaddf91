"""Room: weights/prune."""
