"""Machine-checked exercises: a module for each chapter, with checkers and reference solutions."""

from companion.exercises.checking import Exercise, WrongAnswer

__all__ = ["Exercise", "WrongAnswer"]
