"""Experiments of the chapter `adjoint`."""
