"""Experiments of the chapter `memory_free`."""
