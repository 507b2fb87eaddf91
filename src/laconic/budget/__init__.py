"""Room: budget."""
