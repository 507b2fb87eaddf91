"""Room: weights/recover."""
