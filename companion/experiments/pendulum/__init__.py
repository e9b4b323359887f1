"""Experiments of the chapter `pendulum`."""
