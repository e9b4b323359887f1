"""Measures of trained and untrained networks: one question a file."""
