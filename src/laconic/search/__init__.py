"""Search: which level at which site, judged by the whole model."""
