"""Experiments of the chapter `residual_steps`."""
