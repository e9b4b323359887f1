"""Experiments of the chapter `limits`."""
