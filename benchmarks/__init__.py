"""Side-by-side runs: this package, plain PyTorch loops and torchdiffeq on the same work."""
