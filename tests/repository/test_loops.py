"""A loop over cases runs all of them and reports each that fails."""

import pytest
from loops import loop


def test_a_loop_names_every_offender():
    seen = []

    @loop("a", [1, 2])
    @loop(("b", "c"), [(3, 4), (5, 6), (7, 8)])
    def test(a, b, c, device):
        seen.append((a, b, c, device))
        assert b == 5 or (a, b) == (2, 3), f"{b} is wrong"

    with pytest.raises(ExceptionGroup, match="2 of 2 cases") as found:
        test(device="cpu")
    assert seen == [(a, b, c, "cpu") for a in (1, 2) for b, c in ((3, 4), (5, 6), (7, 8))]
    first, second = found.value.exceptions
    assert (len(first.exceptions), len(second.exceptions)) == (2, 1)
    assert [e.__notes__ for e in first.exceptions] == [
        ["with {'b': 3, 'c': 4}"], ["with {'b': 7, 'c': 8}"],
    ]  # fmt: skip


def test_a_failure_by_call_counts_and_a_pass_is_silent():
    @loop("a", [1])
    def fails(a):
        pytest.fail("no")

    with pytest.raises(BaseExceptionGroup, match="1 of 1 cases"):
        fails()
    assert loop("a", [1])(lambda a: None)() is None


@pytest.mark.parametrize(("names", "values"), [("a", []), ("b", [1])])
def test_a_loop_over_nothing_is_refused(names, values):
    with pytest.raises(AssertionError, match=r"no (values|argument)"):
        loop(names, values)(lambda a: None)
