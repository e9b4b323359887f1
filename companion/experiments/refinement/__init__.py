"""Experiments of the chapter `refinement`."""
