"""Experiments of the chapter `weight_functions`."""
