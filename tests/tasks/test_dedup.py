"""Items that occur twice, or nearly."""

import pytest

from imatrix_lab.tasks import dedup, definition, load
from imatrix_lab.tasks.items import Item, make_items
from imatrix_lab.tasks.locale import get_locale
from tests import real_data


def item(name, question, options=(), golds=("x",), right=None, cluster="", context=""):
    return Item(name, "en", "", context, question, options, golds, right, cluster, {})


def n_clusters(unique):
    return len({item.cluster for item in unique.items})


def test_repeats_are_merged_with_their_golds():
    unique = dedup.merge(
        [item("1", "Who?", golds=("Ada",)), item("2", "who ?", golds=("Lovelace",))]
    )
    assert [i.golds for i in unique.items] == [("Ada", "Lovelace")]
    assert unique.n_conflicts == 0


def test_a_repeat_with_another_right_option_is_counted():
    unique = dedup.merge([item("1", "Q", ("a", "b"), right=0), item("2", "Q", ("a", "b"), right=1)])
    assert len(unique.items) == 1
    assert unique.items[0].right == 0
    assert unique.n_conflicts == 1


def test_near_repeats_share_a_cluster_and_stay():
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    texts = [
        f"{words} fifteen sixteen seventeen eighteen nineteen",
        f"{words} fifteen sixteen seventeen eighteen twenty",
        "something else altogether that shares nothing",
    ]
    unique = dedup.merge([item(str(n), t) for n, t in enumerate(texts)])
    assert (len(unique.items), unique.n_near, n_clusters(unique)) == (3, 1, 2)


def test_nearness_to_two_that_are_not_near_each_other_joins_them():
    words = [f"w{i}" for i in range(60)]
    first, second = ["x", *words[1:]], [*words[:-1], "y"]
    first[20:23] = second[40:43] = "abc"
    unique = dedup.merge([item(str(n), " ".join(t)) for n, t in enumerate((first, second, words))])
    assert (unique.n_near, n_clusters(unique)) == (1, 1)
    assert dedup.merge(unique.items[:2]).n_near == 0


def test_what_is_connected_is_one_cluster():
    unique = dedup.merge(
        [item("1", "a", cluster="p"), item("2", "b", cluster="q"), item("3", "c", cluster="p")]
    )
    assert [i.cluster for i in unique.items] == ["p", "q", "p"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("What is 5 - 3?", "What is 5 + 3?"),
        ("Is x < 2", "Is x > 2"),
        ("Is it -4?", "Is it 4?"),
        ("കല", "കാല"),  # art, time: the vowel sign differs
        ("What is C++?", "What is C#?"),
    ],
)
def test_signs_tell_questions_apart(first, second):
    assert len(dedup.merge([item("1", first), item("2", second)]).items) == 2


def test_signs_alone_are_not_all_the_same():
    assert len(dedup.merge([item("1", "???"), item("2", "!!!")]).items) == 2


@pytest.mark.parametrize(
    ("name", "n", "n_unique"), [("free-form", 2000, 1446), ("multiple-choice", 1996, 1735)]
)
def test_mixeval(name, n, n_unique):
    file = real_data.need(f"mixeval/{name}.json")
    task = definition.get("mixeval")
    items, _ = make_items(load.rows(task, "en", file).rows, task, get_locale("en"))
    unique = dedup.merge(items)
    assert (len(items), len(unique.items), unique.n_conflicts) == (n, n_unique, 0)
    assert n_clusters(unique) < n_unique
