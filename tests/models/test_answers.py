import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_rerank.models.language_model.answers import read_order
from llm_rerank.models.language_model.windows import windows_from_back

READ = [
    ("[3, 1, 2]", [3, 1, 2]),
    ("```json\n[3, 1, 2]\n```", [3, 1, 2]),
    ('{"order": ["3", "1", "2"]}', [3, 1, 2]),
    ("[3] > [1] > [2]", [3, 1, 2]),
    ("3 > 1 > 2", [3, 1, 2]),
    ("The order is: 3, 1 and 2.", [3, 1, 2]),
    ("3\n1\n2", [3, 1, 2]),
    ("1. 3\n2. 1\n3. 2", [3, 1, 2]),
    ("1. [3] bicycle helmet\n2. [1] tea pot 2 l\n3. [2] lamp", [3, 1, 2]),
    ("1) Candidate 3\n2) Candidate 1\n3) Candidate 2", [3, 1, 2]),
    ("3. bicycle helmet\n1. tea pot\n2. lamp", [3, 1, 2]),
    ("[3] bicycle helmet\n[1] tea pot\n[2] lamp", [3, 1, 2]),
    ("<think>maybe [1, 2, 3]? no</think>\n[3, 1, 2]", [3, 1, 2]),
    ("Of [1, 2, 3] I would say [3, 1, 2]", [3, 1, 2]),
    ("[3, 3, 1, 3, 2]", [3, 1, 2]),
    ("[3, 1]", [3, 1, 2]),
    ("[3, 99, 1, 7]", [3, 1, 2]),
    ("[3, 1, 2", [3, 1, 2]),
    ("[3, 1, 2,]", [3, 1, 2]),
    ("[[3, 1, 2]]", [3, 1, 2]),
    (" [3, 2]. ", [3, 2, 1]),
]

NOT_READ = [
    "",
    "I'm sorry, I cannot help with these 3 candidates.",
    "I cannot rank [2].",
    "Here are 2 of them",
    "[0, 2, 1]",
    "[7, 8, 9]",
    "1. tea pot\n2. lamp\n3. helmet",
    "Helmets of 2024 cost 1.5 or 2.5 more",
    "[]",
    "<html>502</html>",
    "<think>[3, 1, 2]</think>",
]


@pytest.mark.parametrize(("answer", "numbers"), READ)
def test_orders_are_read_however_written(answer, numbers):
    assert read_order(answer, 3).tolist() == [number - 1 for number in numbers]


@pytest.mark.parametrize("answer", NOT_READ)
def test_what_is_no_order_is_none(answer):
    assert read_order(answer, 3) is None


def test_half_of_the_candidates_must_be_named():
    assert read_order("[4, 2, 5]", 6).tolist() == [3, 1, 4, 0, 2, 5]
    assert read_order("[4, 2, 5]", 7) is None


@given(st.permutations(range(1, 13)), st.sampled_from([", ", " > ", "\n", "; ", ",", "] > ["]))
def test_every_order_is_read_back(numbers, between):
    text = between.join(map(str, numbers))
    expected = [number - 1 for number in numbers]
    assert read_order(f"[{text}]", 12).tolist() == expected
    assert read_order(f"Sure! {text}", 12).tolist() == expected


@given(st.text(alphabet="[]0123456789,.> \n-ab", max_size=60), st.integers(1, 9))
def test_whatever_comes_is_an_order_or_none(answer, n):
    order = read_order(answer, n)
    assert order is None or sorted(order.tolist()) == list(range(n))


def test_long_answers_take_time_in_proportion():
    for answer in (
        "1" + " " * 50_000 + "x",
        "[" * 50_000,
        "1," * 50_000,
        "[1," * 20_000,
        "\n" * 50_000,
        "1. " * 20_000,
    ):
        start = time.process_time()
        read_order(answer, 20)
        assert time.process_time() - start < 2, answer[:4]


@given(st.integers(0, 60), st.integers(1, 12), st.data())
def test_windows_bring_the_best_to_the_front(n, window, data):
    """Oracle: with every window in its true order, the best window − step of all are in front, as sorting has them."""
    step = data.draw(st.integers(1, window))
    true = data.draw(st.permutations(range(n)))
    order = list(true)
    windows = windows_from_back(n, window, step)
    for first, end in windows:
        assert 0 <= first < end <= n
        assert end - first == min(window, n)
        order[first:end] = sorted(order[first:end])
    assert order[: window - step] == sorted(true)[: window - step]
    assert (order == sorted(true)) or n > window
    assert len(windows) == (0 if n == 0 else 1 + max(0, -(-(n - window) // step)))


def test_windows_by_hand():
    assert windows_from_back(50, 20, 10) == [(30, 50), (20, 40), (10, 30), (0, 20)]
    assert windows_from_back(25, 20, 10) == [(5, 25), (0, 20)]
    assert windows_from_back(20, 20, 10) == [(0, 20)]
    assert windows_from_back(3, 20, 10) == [(0, 3)]
    assert np.shape(windows_from_back(0, 20, 10)) == (0,)
