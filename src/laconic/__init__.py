"""Make what deep learning carries smaller, and prove what that cost."""
