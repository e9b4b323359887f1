"""Experiments of the chapter `many_graphs`."""
