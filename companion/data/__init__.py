"""Data sets: one file each."""

from companion.data.digits import Digits, load_digits

__all__ = ["Digits", "load_digits"]
