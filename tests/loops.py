"""Many cases in one test: for axes on which nobody selects or reruns a single case."""

import functools
import inspect
from collections.abc import Callable, Iterable

import pytest


def loop(names: str | tuple[str, ...], values: Iterable) -> Callable:
    """Run a test for every value, and report all that fail: `parametrize` with one result.

    Fixtures are set up once for all values.
    """
    keys = (names,) if isinstance(names, str) else names
    cases = [dict(zip(keys, v if len(keys) > 1 else (v,), strict=True)) for v in values]
    assert cases, f"{names}: no values to loop over"

    def decorate(test: Callable) -> Callable:
        @functools.wraps(test)
        def every(**given):
            offenders = []
            for case in cases:
                try:
                    test(**given, **case)
                except (Exception, pytest.fail.Exception) as error:
                    error.add_note(f"with {case}")
                    offenders.append(error)
            if offenders:
                raise BaseExceptionGroup(f"{len(offenders)} of {len(cases)} cases", offenders)

        signature = inspect.signature(test)
        assert set(keys) <= set(signature.parameters), f"{test.__name__}: no argument {keys}"
        rest = [p for p in signature.parameters.values() if p.name not in keys]
        every.__signature__ = signature.replace(parameters=rest)
        return every

    return decorate
