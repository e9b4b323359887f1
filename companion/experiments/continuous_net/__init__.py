"""Experiments of the chapter `continuous_net`."""
