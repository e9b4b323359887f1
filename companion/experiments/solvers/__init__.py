"""Experiments of the chapter `solvers`."""
