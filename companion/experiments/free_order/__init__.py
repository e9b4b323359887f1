"""Experiments of the chapter `free_order`."""
