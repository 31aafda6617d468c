"""How far a code keeps apart the factors that made an image. N images, Z units of the code, K factors.

All are compared in Locatello et al. 2019 (arXiv 1811.12359). Rows come in random order: the first half of them trains
what the second half is scored with.
"""

from collections.abc import Iterator
from math import nan

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import mutual_info_score, recall_score
from sklearn.tree import DecisionTreeClassifier

from pipeline.settings import FACTORS
from vaegan.metrics.latents import ACTIVE

Codes = npt.NDArray[np.floating]
Factors = npt.NDArray[np.integer]

BINS = 20
TREES = 10
VOTES = 800
GROUP = 64


def disentanglement(codes_NZ: Codes, factors_NK: Factors, seed: int = 0) -> dict[str, float]:
    """mig, dci_disentanglement, dci_completeness, dci_informativeness, sap, factor_vae: each 1 at best.

    codes_NZ: posterior means, at least two units; where one is not finite, no score is. factors_NK: at least two
    factors, and two values or more of each.
    """
    if not np.isfinite(codes_NZ).all():
        return dict.fromkeys(FACTORS, nan)
    rng = np.random.default_rng(seed)
    order_N = rng.permutation(len(codes_NZ))
    codes_NZ, factors_NK = codes_NZ[order_N], factors_NK[order_N]
    return {
        "mig": mutual_information_gap(codes_NZ, factors_NK),
        **dci(codes_NZ, factors_NK),
        "sap": separated_predictability(codes_NZ, factors_NK),
        "factor_vae": factor_vae_score(codes_NZ, factors_NK, rng),
    }


def mutual_information_gap(codes_NZ: Codes, factors_NK: Factors) -> float:
    """What the best unit knows of a factor and the second best does not, in entropies of that factor; mean over K.

    Chen et al. 2018 (arXiv 1802.04942), eq. 6, on codes cut into 20 bins of equal width (Locatello et al.).
    """
    binned_NZ = np.stack([np.digitize(code_N, np.histogram_bin_edges(code_N, BINS)[1:-1]) for code_N in codes_NZ.T], 1)
    information_ZK = np.array(
        [[mutual_info_score(factor_N, code_N) for factor_N in factors_NK.T] for code_N in binned_NZ.T]
    )
    entropy_K = np.array([mutual_info_score(factor_N, factor_N) for factor_N in factors_NK.T])
    return _mean_gap(information_ZK / entropy_K)


def separated_predictability(codes_NZ: Codes, factors_NK: Factors) -> float:
    """SAP: how much better the best unit alone predicts a factor than the second best alone; mean over K.

    Kumar et al. 2018 (arXiv 1711.00848), section 3. A unit predicts by thresholds, as there: those of a tree with one
    leaf a value. Balanced accuracy, scaled to be 0 at chance.
    """
    scores_ZK = np.array([[_predictability(code_N, factor_N) for factor_N in factors_NK.T] for code_N in codes_NZ.T])
    return _mean_gap(scores_ZK)


def _predictability(code_N: Codes, factor_N: Factors) -> float:
    code_N1, half = code_N[:, None], len(code_N) // 2
    leaves = len(np.unique(factor_N))
    thresholds = DecisionTreeClassifier(max_leaf_nodes=leaves, class_weight="balanced", random_state=0)
    predicted_N = thresholds.fit(code_N1[:half], factor_N[:half]).predict(code_N1[half:])
    scored = np.unique(factor_N[half:])  # the half that trains may have more values
    if len(scored) == 1:
        return 0.0
    recall = recall_score(factor_N[half:], predicted_N, labels=scored, average="macro")
    return (recall - 1 / len(scored)) / (1 - 1 / len(scored))


def _mean_gap(scores_ZK: Codes) -> float:
    """Best less second best unit, mean over factors."""
    *_, second_K, best_K = np.sort(scores_ZK, 0)
    return float((best_K - second_K).mean())


def dci(codes_NZ: Codes, factors_NK: Factors) -> dict[str, float]:
    """Disentanglement, completeness and informativeness (Eastwood & Williams 2018, section 2).

    From random forests, which their authors used; boosted trees, as in Locatello et al., take minutes where these take
    seconds. Every tree may split on every unit, so that none gets credit for a better one's absence. Informativeness is
    accuracy, mean over K.
    """
    half = len(codes_NZ) // 2
    importance_ZK = np.empty((codes_NZ.shape[1], factors_NK.shape[1]))
    accuracy_K = np.empty(factors_NK.shape[1])
    for k, factor_N in enumerate(factors_NK.T):
        forest = RandomForestClassifier(TREES, max_features=None, random_state=0)
        forest.fit(codes_NZ[:half], factor_N[:half])
        importance_ZK[:, k] = forest.feature_importances_
        accuracy_K[k] = forest.score(codes_NZ[half:], factor_N[half:])
    weight_Z = importance_ZK.sum(1) / importance_ZK.sum().clip(1e-12)
    return {
        "dci_disentanglement": float(weight_Z @ _concentration(importance_ZK)),
        "dci_completeness": float(_concentration(importance_ZK.T).mean()),
        "dci_informativeness": float(accuracy_K.mean()),
    }


def _concentration(importance_AB: Codes) -> Codes:
    """1 - entropy of each row's shares over that of even ones, (A,): 1 where one has all, 0 where none has any."""
    total_A = importance_AB.sum(1)
    shares_AB = importance_AB / total_A[:, None].clip(1e-12)
    entropy_A = -(shares_AB * np.log(shares_AB.clip(1e-12))).sum(1)
    return (total_A > 0) * (1 - entropy_A / np.log(importance_AB.shape[1]))


def factor_vae_score(codes_NZ: Codes, factors_NK: Factors, rng: np.random.Generator) -> float:
    """How well the unit that varies least among images alike in one factor tells which factor. Chance is 1 / K.

    Kim & Mnih 2018 (arXiv 1802.05983), section 4: a majority vote from 800 groups of 64 images, scored on 800 others.
    Units that are not active stay out; 0 where none is.
    """
    active_Z = codes_NZ.var(0) > ACTIVE
    if not active_Z.any():
        return 0.0
    scaled_NZ = codes_NZ[:, active_Z] / codes_NZ[:, active_Z].std(0)
    votes_ZK, unseen_ZK = np.zeros((2, scaled_NZ.shape[1], factors_NK.shape[1]), int)
    for counts_ZK in (votes_ZK, unseen_ZK):
        for unit, factor in _votes(scaled_NZ, factors_NK, rng):
            counts_ZK[unit, factor] += 1
    return float(unseen_ZK[np.arange(len(votes_ZK)), votes_ZK.argmax(1)].sum() / VOTES)


def _votes(codes_NZ: Codes, factors_NK: Factors, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """(unit that varies least, factor held still) of random groups."""
    for factor, like in zip(
        rng.integers(factors_NK.shape[1], size=VOTES), rng.integers(len(codes_NZ), size=VOTES), strict=True
    ):
        alike_N = np.flatnonzero(factors_NK[:, factor] == factors_NK[like, factor])
        yield int(codes_NZ[rng.choice(alike_N, GROUP)].var(0).argmin()), int(factor)
