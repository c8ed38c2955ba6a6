"""Similarity against brute-force references, floors that shuffling must reach, and separation against its definition."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest

from lingact.analysis.similarity import (
    auc_draws,
    cohens_d,
    debiased_cka,
    diffmean_directions,
    jackknife_interval,
    separation_table,
    shuffled_cka,
    similarity_kernel,
    similarity_table,
    translation_ranks,
)
from lingact.statistics.bootstrap import Resampling

COUNT, WIDTH = 30, 6


def pair(seed: int, noise: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """Two noisy readings of the same sentences, each with a mean of its own."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(COUNT, WIDTH))
    return x + 5, x @ random.normal(size=(WIDTH, WIDTH)) + noise * random.normal(size=(COUNT, WIDTH)) - 2


def cka_by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """Means of products of inner products over all ordered pairs, triples and quadruples of different sentences, of vectors as they come."""
    k, other = x @ x.T, y @ y.T
    places = range(len(x))

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        pairs = np.mean([a[i, j] * b[i, j] for i, j in permutations(places, 2)])
        triples = np.mean([a[i, j] * b[i, m] for i, j, m in permutations(places, 3)])
        quadruples = np.mean([a[i, j] * b[m, q] for i, j, m, q in permutations(places, 4)])
        return float(pairs - 2 * triples + quadruples)

    return hsic(k, other) / np.sqrt(hsic(k, k) * hsic(other, other))


def cka_by_matrices(x: np.ndarray, y: np.ndarray) -> float:
    """The formula of Song et al. (2012) with full matrices, of vectors as they come."""
    k, other = ((z @ z.T) * (1 - np.eye(len(z))) for z in (x, y))
    n, one = len(x), np.ones(len(x))

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.trace(a @ b) + (one @ a @ one) * (one @ b @ one) / (n - 1) / (n - 2) - 2 * (one @ a @ b @ one) / (n - 2))

    return hsic(k, other) / np.sqrt(hsic(k, k) * hsic(other, other))


def kernels(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return similarity_kernel(x), similarity_kernel(y)


def cka(x: np.ndarray, y: np.ndarray) -> float:
    return float(debiased_cka(*kernels(x, y), np.zeros((len(x), 1)))[0])


def both(seed: int = 0, noise: float = 0.1, layers: int = 2) -> dict[str, np.ndarray]:
    """`near` is the reference with noise, `far` is unrelated to it."""
    random = np.random.default_rng(seed)
    base = random.normal(size=(layers, COUNT, WIDTH)) + 3
    return {"en": base, "near": base + noise * random.normal(size=base.shape), "far": random.normal(size=base.shape) + 3}


def table(vectors: dict[str, np.ndarray], resamples: int = 200, seed: int = 0) -> pd.DataFrame:
    found = similarity_table(vectors, (4, 7), "en", Resampling.of_sentences(len(vectors["en"][0])), resamples=resamples, confidence=0.95, seed=seed)
    return found.set_index(["language", "layer", "quantity"]).sort_index()


def test_cka_is_that_of_pairs_triples_and_quadruples() -> None:
    x, y = (z[:9] for z in pair(0))
    assert cka(x, y) == pytest.approx(cka_by_definition(x, y))
    assert cka(x, y) == pytest.approx(cka_by_matrices(x, y))


def test_cka_does_not_see_rotation_scale_and_shift() -> None:
    x, _ = pair(1)
    turned = 3 * x @ np.linalg.qr(np.random.default_rng(2).normal(size=(WIDTH, WIDTH)))[0] + 8
    assert cka(x, turned) == pytest.approx(1)
    assert cka(x, x) == pytest.approx(1)


def test_cka_without_a_group_is_that_of_the_others() -> None:
    x, y = pair(3)
    left_out = np.zeros((COUNT, 2))
    left_out[[0, 4, 9], 0] = left_out[10:25, 1] = 1
    expected = [cka_by_matrices(x[group == 0], y[group == 0]) for group in left_out.T]
    np.testing.assert_allclose(debiased_cka(*kernels(x, y), left_out), expected)


def test_cka_of_shuffled_pairs() -> None:
    x, y = pair(4)
    partners = np.stack([np.random.default_rng(seed).permutation(COUNT) for seed in range(3)])
    np.testing.assert_allclose(shuffled_cka(*kernels(x, y), partners), [cka_by_matrices(x, y[partner]) for partner in partners])


def test_unrelated_vectors_have_no_cka_at_any_width() -> None:
    """Six sentences to a dimension or forty dimensions to a sentence; the biased estimator gives 0.14 and 0.98."""
    random = np.random.default_rng(0)
    for width in (5, 1200):
        found = np.array([cka(random.normal(size=(COUNT, width)), random.normal(size=(COUNT, width))) for _ in range(100)])
        assert abs(found.mean()) < 3 * found.std() / 10
        assert found.std() < 0.1
    assert found.min() < 0


def test_shared_meaning_is_seen_through_many_dimensions() -> None:
    """Of forty equal directions in each language twenty are the same, so CKA of infinitely many sentences is 20 / 40."""
    random = np.random.default_rng(0)
    shared = random.normal(size=(400, 20))
    mixed = [np.hstack([shared, random.normal(size=(400, 20))]) @ random.normal(size=(40, 2000)) for _ in range(2)]
    assert cka(*mixed) == pytest.approx(0.5, abs=0.05)


def test_cka_of_what_does_not_vary_or_of_three_sentences_is_undefined() -> None:
    x, y = pair(0)
    assert np.isnan(cka(x, np.ones((COUNT, WIDTH))))
    assert np.isnan(cka(x[:3], y[:3]))
    assert np.isnan(shuffled_cka(*kernels(x[:3], y[:3]), np.array([[2, 0, 1]]))).all()


def test_ranks_by_hand_in_both_directions() -> None:
    cosines = np.array([[0.9, 0.1, 0.2], [0.8, 0.5, 0.6], [0.3, 0.7, 0.4]])
    ranks = translation_ranks(cosines, np.arange(3))
    np.testing.assert_array_equal(ranks, [[1, 3, 2], [1, 2, 2]])
    assert (1 / ranks).mean() == pytest.approx((1 + 1 / 3 + 1 / 2 + 1 + 1 / 2 + 1 / 2) / 6)


def test_ranks_of_other_partners() -> None:
    """Row 0 belongs with column 2, row 1 with column 0, row 2 with column 1."""
    cosines = np.array([[0.9, 0.1, 0.2], [0.8, 0.5, 0.6], [0.3, 0.7, 0.4]])
    np.testing.assert_array_equal(translation_ranks(cosines, np.array([2, 0, 1])), [[2, 1, 1], [3, 2, 1]])


def test_a_tie_is_lost() -> None:
    np.testing.assert_array_equal(translation_ranks(np.array([[0.5, 0.5], [0.1, 0.7]]), np.arange(2)), [[2, 1], [1, 1]])


def test_collapsed_sentences_retrieve_nothing() -> None:
    vectors = {"en": np.ones((2, COUNT, WIDTH)), "near": np.ones((2, COUNT, WIDTH))}
    found = table(vectors)["estimate"]
    assert found["near", 4, "retrieval"] == 0
    assert found["near", 4, "mrr"] == pytest.approx(1 / COUNT)
    assert np.isnan(found["near", 4, "cka"])


def test_table_holds_the_plain_measures() -> None:
    vectors = both()
    found = table(vectors)
    assert set(found.index.get_level_values("quantity")) == {"cka", "retrieval", "mrr", "centred_cosine", "cosine"}
    assert set(found["n"]) == {COUNT}
    x, y = vectors["far"][1], vectors["en"][1]
    cosine = lambda a, b: np.mean((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))  # noqa: E731
    row = found.xs(("far", 7))["estimate"]
    assert row["cosine"] == pytest.approx(cosine(x, y))
    assert row["centred_cosine"] == pytest.approx(cosine(x - x.mean(0), y - y.mean(0)))
    assert row["cka"] == pytest.approx(cka_by_matrices(x, y))
    assert found.xs(("near", 4))["estimate"]["retrieval"] == 1


def test_the_floor_is_that_of_shuffled_pairs() -> None:
    """Of 20 shuffles of 30 sentences the mean accuracy is 1/30 with a standard error of about 0.005."""
    found = table(both())
    for code in ("near", "far"):
        assert found.xs((code, 4))["floor"]["retrieval"] == pytest.approx(1 / COUNT, abs=0.02)
    near, far = found.xs(("near", 4)), found.xs(("far", 4))
    assert (near["lo"] > near["floor_hi"])[["cka", "retrieval", "mrr", "centred_cosine"]].all()
    assert far["estimate"]["cosine"] > 0.5, "a common mean makes unrelated vectors similar"
    assert far["estimate"]["cosine"] == pytest.approx(far["floor"]["cosine"], abs=0.05)
    assert far["estimate"]["cka"] == pytest.approx(far["floor"]["cka"], abs=0.1)
    assert (found["floor_hi"] >= found["floor"]).all()


def test_intervals_hold_their_estimates_and_the_seed_repeats_them() -> None:
    found = table(both(noise=0.8))
    assert (found["lo"] <= found["estimate"]).all()
    assert (found["estimate"] <= found["hi"]).all()
    pd.testing.assert_frame_equal(found, table(both(noise=0.8)))
    assert not found["lo"].equals(table(both(noise=0.8), seed=1)["lo"])


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=20)
    without = (values.sum() - values) / 19
    lo, hi = jackknife_interval(values.mean(), without, 0.95)
    assert hi - lo == pytest.approx(2 * 1.959964 * values.std(ddof=1) / np.sqrt(20))


def test_jackknife_covers_the_cka_of_many_sentences() -> None:
    """Ninety-five intervals of a hundred hold the value of 20,000 sentences, give or take the chance of a hundred draws."""
    random = np.random.default_rng(0)
    mixing = random.normal(size=(3, 3))

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        x = random.normal(size=(count, 3))
        return x, x @ mixing + random.normal(size=(count, 3))

    x, y = draw(20_000)  # so many that the bias is nothing, and kernels are too large
    covariances = np.cov(x.T, y.T)
    truth = np.linalg.norm(covariances[:3, 3:]) ** 2 / np.linalg.norm(covariances[:3, :3]) / np.linalg.norm(covariances[3:, 3:])
    held = 0
    left_out = np.eye(21)[1 + np.arange(200) % 20]
    for _ in range(100):
        found = debiased_cka(*kernels(*draw(200)), left_out)
        lo, hi = jackknife_interval(float(found[0]), found[1:], 0.95)
        held += lo <= truth <= hi
    assert 88 <= held <= 100


def test_auc_is_the_share_of_pairs_won() -> None:
    own, reference = np.array([1.0, 3.0, 3.0, 0.5]), np.array([3.0, 0.0, 2.0, 0.5])
    wins = [float(a > b) + 0.5 * float(a == b) for a in own for b in reference]
    weights = np.array([[1.0, 1, 1, 1], [2, 0, 2, 0]])
    resampled = [float(a > b) + 0.5 * float(a == b) for a in (1, 1, 3, 3) for b in (3, 3, 2, 2)]
    np.testing.assert_allclose(auc_draws(own, reference, weights), [np.mean(wins), np.mean(resampled)])


def test_cohens_d_by_hand() -> None:
    assert cohens_d(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(2 / np.sqrt((4 + 1) / 2))
    assert np.isnan(cohens_d(np.ones(3), np.ones(3)))


def test_directions_are_found_on_the_discovery_half_alone() -> None:
    vectors = both()
    halves = np.arange(COUNT) % 2
    found = diffmean_directions(vectors, halves, "en")
    assert set(found) == {"near", "far"}
    expected = vectors["far"][1, halves == 0].mean(0) - vectors["en"][1, halves == 0].mean(0)
    np.testing.assert_allclose(found["far"][1], expected / np.linalg.norm(expected))
    changed = vectors | {"far": np.where(halves[:, None] == 1, 99.0, vectors["far"])}
    np.testing.assert_allclose(diffmean_directions(changed, halves, "en")["far"], found["far"])


def test_a_shifted_language_is_told_apart_and_an_unshifted_one_is_not() -> None:
    random = np.random.default_rng(0)
    base = random.normal(size=(1, 200, WIDTH))
    shift = 4 * np.eye(WIDTH)[0]
    vectors = {"en": base, "far": base + 0.3 * random.normal(size=base.shape) + shift, "near": random.normal(size=base.shape)}
    loud = {"norm": {code: np.linalg.norm(x, axis=2) for code, x in vectors.items()}, "flat": {code: np.ones((1, 200)) for code in vectors}}
    halves = np.arange(200) % 2
    found = separation_table(
        vectors, loud, halves, (5,), "en", Resampling.of_sentences(len(halves)), resamples=200, confidence=0.95, seed=0
    ).set_index(["language", "quantity"])
    assert found.loc[("far", "diffmean"), "lo"] > 0.95
    assert found.loc[("far", "diffmean"), "effect"] > 3
    assert found.loc[("near", "diffmean"), "lo"] < 0.5 < found.loc[("near", "diffmean"), "hi"]
    assert found.loc[("far", "norm"), "estimate"] > 0.9
    assert found.loc[("far", "flat"), "estimate"] == 0.5
    assert set(found["n"]) == {100}
    assert set(found["layer"]) == {5}


def test_a_scalar_below_the_reference_has_an_auc_below_half() -> None:
    vectors = both()
    scalars = {"activation": {"en": np.full((2, COUNT), 2.0), "near": np.full((2, COUNT), 1.0), "far": np.full((2, COUNT), 3.0)}}
    found = separation_table(
        vectors, scalars, np.arange(COUNT) % 2, (0, 1), "en", Resampling.of_sentences(COUNT), resamples=20, confidence=0.9, seed=0
    )
    activation = found[found["quantity"] == "activation"].set_index(["language", "layer"])["estimate"]
    assert activation["near", 0] == 0
    assert activation["far", 1] == 1
