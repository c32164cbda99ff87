"""On real answers: duplicates make the naive test wrong, and the clustered one not."""

import json

import numpy as np
import pytest

from imatrix_lab.stats import binary, clustered, paired
from tests import real_data


@pytest.fixture(scope="module", params=["free-form", "multiple-choice"])
def answers(request):
    """(right or wrong of a real model, group of each item, identical item of each)."""
    folder = real_data.need("mixeval")
    items = json.loads((folder / f"{request.param}.json").read_text(encoding="utf-8"))
    lines = (folder / f"golden.{request.param}.jsonl").read_text(encoding="utf-8").splitlines()
    golden = [json.loads(line) for line in lines]
    asked = [items[g["id"]] for g in golden]
    groups = [x["context"] or x["prompt"] for x in asked]
    same = [json.dumps([x["context"], x["prompt"], x.get("options")]) for x in asked]
    right = np.array([g["correct"] for g in golden])
    return right, np.unique(groups, return_inverse=True)[1], np.unique(same, return_inverse=True)[1]


def test_identical_items_are_in_one_group(answers):
    right, groups, same = answers
    assert len(right) in (1996, 2000)
    assert len(np.unique(groups)) < len(np.unique(same)) < len(right)
    assert all(len(np.unique(groups[same == s])) == 1 for s in np.unique(same))


def test_duplicates_fool_the_naive_test_only(answers):
    """Two systems flip the same share of the real answers at random, identical items alike."""
    right, groups, same = answers
    rng = np.random.default_rng(1)
    n_sim, n_groups, n_same = 1200, groups.max() + 1, same.max() + 1
    rejected = dict.fromkeys(("naive", "clustered", "cr3"), 0)
    for _ in range(n_sim):
        a, b = (right ^ (rng.random(n_same) < 0.04)[same] for _ in range(2))
        moved = a - b
        table = np.bincount(groups, moved, n_groups)
        wins, losses = int((moved == 1).sum()), int((moved == -1).sum())
        naive = binary.mcnemar(np.repeat([1, -1], [wins, losses]))
        interval = clustered.mean(table, np.bincount(groups))
        rejected["naive"] += naive.p_exact <= 0.05
        rejected["clustered"] += binary.mcnemar(table).p_exact <= 0.05
        rejected["cr3"] += paired.t_test(interval) <= 0.05
    rates = {name: n / n_sim for name, n in rejected.items()}
    assert 0.02 <= rates["clustered"] <= 0.05
    assert 0.03 <= rates["cr3"] <= 0.065
    assert rates["naive"] > 0.055
