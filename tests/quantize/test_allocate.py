"""Types at a size: the best choice, within bytes and limits."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imatrix_lab.errors import UsageError
from imatrix_lab.quantize import allocate
from imatrix_lab.quantize.allocate import Candidate, Goal

TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")


def instance(seed, n_tensors=5, languages=("nb", "ml"), types=TYPES[:4]):
    """Random tensors whose errors fall with their bits, by other factors in each language."""
    rng = np.random.default_rng(seed)
    candidates = {}
    for i in range(n_tensors):
        n_blocks = int(rng.integers(8, 4000))
        scale = {x: float(np.exp(rng.normal(0, 1.5))) for x in languages}
        candidates[f"blk.{i // 2}.{('ffn_down', 'attn_v')[i % 2]}.weight"] = {
            t: Candidate(
                round(n_blocks * allocate.bits_of(t)) * 32,
                {
                    x: scale[x] * 4 ** -allocate.bits_of(t) * float(rng.uniform(0.7, 1.4))
                    for x in languages
                },
            )
            for t in types
        }
    return candidates


def every(candidates):
    """All choices as (bytes, KLD by language)."""
    for types in itertools.product(*(list(o) for o in candidates.values())):
        chosen = dict(zip(candidates, types, strict=True))
        n_bytes = sum(candidates[t][name].size_bytes for t, name in chosen.items())
        yield n_bytes, allocate.predicted(candidates, chosen)


def loss(nats, goal):
    return sum(w * nats[x] / goal.scale_nats.get(x, 1.0) for x, w in goal.weights.items())


def a_goal(candidates, share, **rest):
    smallest, largest = allocate.sizes(candidates, Goal(0, 0, {"nb": 1.0}))
    size_bytes = int(smallest + share * (largest - smallest))
    return Goal(size_bytes + 1000, 1000, rest.pop("weights", {"nb": 1.0}), **rest)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.35, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_no_other_choice_of_the_size_is_better(seed, share):
    candidates = instance(seed)
    goal = a_goal(candidates, share, weights={"nb": 1.0, "ml": 0.3}, scale_nats={"ml": 20.0})
    choice = allocate.allocate(candidates, goal)
    best = min(loss(k, goal) for n, k in every(candidates) if n + 1000 <= goal.size_bytes)
    assert best <= loss(choice.predicted_kld_nats, goal) <= best * (1 + allocate.GAP) + 1e-12


@pytest.mark.parametrize("seed", range(4))
def test_a_limit_is_kept_at_the_least_cost(seed):
    candidates = instance(seed)
    free = allocate.allocate(candidates, a_goal(candidates, 0.4))
    within = [
        (n, k) for n, k in every(candidates) if n + 1000 <= a_goal(candidates, 0.4).size_bytes
    ]
    least = min(k["ml"] for _, k in within)
    limit = (least + free.predicted_kld_nats["ml"]) / 2
    choice = allocate.allocate(candidates, a_goal(candidates, 0.4, limits_nats={"ml": limit}))
    assert choice.predicted_kld_nats["ml"] <= limit * (1 + 1e-6)
    best = min(k["nb"] for _, k in within if k["ml"] <= limit)
    assert choice.predicted_kld_nats["nb"] == pytest.approx(best, rel=2 * allocate.GAP)


def test_limits_that_cannot_be_kept_are_told_with_the_least_that_can():
    candidates = instance(3)
    goal = a_goal(candidates, 0.4, limits_nats={"ml": 1e-6})
    least = min(k["ml"] for n, k in every(candidates) if n + 1000 <= goal.size_bytes)
    with pytest.raises(UsageError) as error:
        allocate.allocate(candidates, goal)
    assert f"ml {allocate.number(least)} nats" in error.value.what and "--size" in error.value.fix


@pytest.mark.parametrize("n_bytes", [900, 10**9])
def test_a_size_that_no_choice_has_is_told_with_the_range(n_bytes):
    candidates = instance(0)
    smallest, largest = allocate.sizes(candidates, Goal(0, 1000, {"nb": 1.0}))
    with pytest.raises(UsageError) as error:
        allocate.allocate(candidates, Goal(n_bytes, 1000, {"nb": 1.0}))
    for end in (smallest, largest):
        assert allocate.size(end).replace(" ", "") in error.value.fix


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    share=st.floats(0, 1),
    n_tensors=st.integers(1, 40),
    least=st.sampled_from(("", *TYPES)),
)
def test_sizes_and_bounds_are_kept_and_bytes_are_spent(seed, share, n_tensors, least):
    candidates = instance(seed, n_tensors, types=TYPES)
    at_least = {"ffn_down": least} if least else {}
    bounds = Goal(0, 1000, {"nb": 1.0}, at_least=at_least)
    smallest, largest = allocate.sizes(candidates, bounds)
    goal = Goal(int(smallest + share * (largest - smallest)), 1000, {"nb": 1.0}, at_least=at_least)
    choice = allocate.allocate(candidates, goal)
    sizes = {t: candidates[t][name].size_bytes for t, name in choice.types.items()}
    assert choice.types.keys() == candidates.keys()
    assert choice.size_bytes == 1000 + sum(sizes.values()) <= goal.size_bytes
    assert choice.predicted_kld_nats == allocate.predicted(candidates, choice.types)
    for tensor, name in choice.types.items():
        if least and allocate.role_of(tensor) == "ffn_down":
            assert allocate.bits_of(name) >= allocate.bits_of(least)
        left = goal.size_bytes - choice.size_bytes + sizes[tensor]
        now = candidates[tensor][name].kld_nats
        for other in candidates[tensor].values():
            assert (
                other.size_bytes > left
                or other.kld_nats["nb"] >= now["nb"]
                or (other.size_bytes <= sizes[tensor] or other.kld_nats["ml"] > now["ml"])
            )


def test_more_bytes_are_never_worse():
    candidates = instance(7, 30, types=TYPES)
    losses = [
        allocate.allocate(candidates, a_goal(candidates, share)).predicted_kld_nats["nb"]
        for share in np.linspace(0, 1, 15)
    ]
    assert all(b <= a * (1 + allocate.GAP) for a, b in itertools.pairwise(losses))


def test_what_matters_to_a_language_gets_the_bits():
    candidates = instance(11, 20, types=TYPES)
    chosen = {
        x: allocate.allocate(
            candidates, a_goal(candidates, 0.3, weights={x: 1.0})
        ).predicted_kld_nats
        for x in ("nb", "ml")
    }
    assert chosen["nb"]["nb"] < chosen["ml"]["nb"] and chosen["ml"]["ml"] < chosen["nb"]["ml"]


def test_a_model_of_80_layers_takes_seconds_and_the_whole_size():
    rng = np.random.default_rng(0)
    shapes = {"attn_q": 8192, "attn_k": 1024, "attn_v": 1024, "attn_output": 8192}
    shapes |= {"ffn_gate": 28672, "ffn_up": 28672, "ffn_down": 28672}
    candidates = {}
    for layer, (role, width) in itertools.product(range(80), shapes.items()):
        factor = float(np.exp(rng.normal()))
        candidates[f"blk.{layer}.{role}.weight"] = {
            t: Candidate(
                int(8192 * width * allocate.bits_of(t) / 8),
                {"nb": factor * 4 ** -allocate.bits_of(t)},
            )
            for t in (*TYPES, "IQ2_XXS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS")
        }
    goal = a_goal(candidates, 0.37)
    choice = allocate.allocate(candidates, goal)
    assert goal.size_bytes * (1 - allocate.TOLERANCE / 10) < choice.size_bytes <= goal.size_bytes
