"""How far the world may move before a certificate of FNR on exits breaks, and how to certify for a move.

Derived, not simulated, each exact: there is a shift of the stated size that reaches the bound. `certified`
is the level at which the certificate was issued, above which FNR on exits is not (with its confidence). A
certificate issued at the target itself has no margin.
"""


def robust_target(target_fnr: float, ratio: float) -> float:
    """The level to certify at, so that target_fnr survives a change of densities by `ratio`.

    ratio: R = Γ², where the density ratio of all positives stays within [1/Γ, Γ]; 1 or more.

    >>> round(robust_target(0.02, 2.0), 4)
    0.0101
    """
    if ratio < 1:
        raise ValueError(f"ratio is {ratio}; allowed 1 or more")
    return target_fnr / (target_fnr + ratio * (1 - target_fnr))


def survived_ratio(target_fnr: float, certified: float) -> float:
    """The largest R = Γ² that the certificate survives: robust_target the other way round."""
    return target_fnr * (1 - certified) / (certified * (1 - target_fnr))


def fnr_after_ratio(certified: float, ratio: float) -> float:
    """Largest FNR on exits where the density ratio of all positives is within [1/Γ, Γ]. ratio: R = Γ²."""
    return ratio * certified / (ratio * certified + 1 - certified)


def fnr_after_exit_ratio(certified: float, gamma: float) -> float:
    """Largest FNR on exits where the density ratio of the exited positives is within [1/gamma, gamma].

    >>> round(fnr_after_exit_ratio(0.0101, 2**0.5), 4)
    0.0143
    """
    return min(gamma * certified, 1 - (1 - certified) / gamma)


def margins(target_fnr: float, certified: float) -> dict[str, float]:
    """The margins of a certificate: total variation on exited positives, and density ratios that it survives.

    Returns total_variation (0 to 1), ratio (R of all positives), exit_gamma (Γ of exited positives); 0, 1 and
    1 where it was certified at the target itself.
    """
    if not 0 < certified <= target_fnr < 1:
        raise ValueError(f"certified at {certified}, target {target_fnr}; allowed 0 < certified <= target < 1")
    # Γ·U ≤ α or 1 − (1 − U)/Γ ≤ α: the minimum of both is what is reached, so the larger Γ survives
    gamma = max(target_fnr / certified, (1 - certified) / (1 - target_fnr))
    return {
        "total_variation": target_fnr - certified,
        "ratio": survived_ratio(target_fnr, certified),
        "exit_gamma": gamma,
    }
