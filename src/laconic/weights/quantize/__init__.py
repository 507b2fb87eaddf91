"""Room: weights/quantize."""
