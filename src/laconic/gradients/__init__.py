"""Gradients made smaller on the wire, through the hook that DistributedDataParallel has."""
