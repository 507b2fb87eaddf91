"""Room: artifact."""
