"""Results come in order, a few ahead at most, and what goes wrong is raised in its place."""

import threading

import pytest

from efficientface.data.ahead import MOST, ahead


def test_results_come_in_order_and_no_more_wait_than_may():
    begun = []

    def work(item):
        begun.append(item)
        return item * item, threading.current_thread()

    for number, (square, thread) in enumerate(ahead(work, range(20))):
        assert square == number**2
        assert thread is not threading.current_thread()
        assert len(begun) <= number + 1 + MOST
    assert sorted(begun) == list(range(20))
    assert list(ahead(work, [])) == []


def test_what_goes_wrong_is_raised_in_its_place():
    results = ahead(lambda number: 6 // number, [3, 2, 0, 1])
    assert [next(results), next(results)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)
