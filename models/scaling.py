"""Scaling laws in closed form: loss from parameters and tokens, accuracy from loss or from compute. Pure functions, no fitting.

Units everywhere: N parameters, D training tokens, C = 6·N·D training FLOPs, loss in nats per token (or in bits per byte, if that is what
was fitted), accuracy between 0 and 1.
Change here: a law. Not here: fitting loss laws (scaling_fit.py), task laws (scaling_tasks.py), choosing between laws (scaling_selection.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Exponents published for the form of chinchilla_loss: (alpha, beta).
HOFFMANN = (0.3392, 0.2849)  # Hoffmann et al. 2022 (arXiv 2203.15556), approach 3, unrounded values of its LaTeX source
BESIROGLU = (0.3478, 0.3658)  # Besiroglu et al. 2024 (arXiv 2404.10102), the same data fitted again


@dataclass(frozen=True)
class RunPoint:
    """One finished training: N parameters a token passes through (active), D tokens, the loss it reached, and all parameters (None: dense)."""

    params: float
    tokens: float
    loss: float
    total_params: float | None = None

    def __post_init__(self) -> None:
        if not (self.params > 0 and self.tokens > 0 and self.loss > 0):
            raise ValueError(f"A run needs positive params, tokens and loss, not {self.params}, {self.tokens}, {self.loss}.")
        if self.total_params is not None and self.total_params < self.params:
            raise ValueError(f"A run has at least as many parameters as are active, not {self.total_params} with {self.params} active.")


@dataclass(frozen=True)
class LossLaw:
    """L(N, D) with fitted coefficients. ``form`` says which were free, and for three of them the formula: ``power`` A / (N^alpha · D^beta),
    without a floor, which losses far above any floor follow (Kaplan et al. 2020, section 3); ``compute`` compute_loss; ``moe``
    moe_family_loss, with ``share``. All others are chinchilla_loss."""

    form: str
    E: float
    A: float
    B: float
    alpha: float
    beta: float
    share: float = 0.0

    def predict(self, params: float, tokens: float, total_params: float | None = None) -> float:
        """Loss of a model of ``params`` active parameters (of ``total_params``; None: dense) trained on ``tokens`` tokens."""
        if self.form == "power":
            return float(self.A * params**-self.alpha * tokens**-self.beta)
        if self.form == "compute":
            return float(compute_loss(6.0 * params * tokens, E=self.E, A=self.A, alpha=self.alpha))
        size = effective_params(params, params if total_params is None else total_params, share=self.share)
        return float(chinchilla_loss(size, tokens, E=self.E, A=self.A, B=self.B, alpha=self.alpha, beta=self.beta))


def compute_loss(flops: float, *, E: float, A: float, alpha: float) -> float:
    """E + A / C^alpha with C = 6·N·D: the direct law in compute (OpenAI 2023, arXiv 2303.08774, section 3.1; Marin Delphi 2026)."""
    return E + A * flops**-alpha


def effective_params(active: float, total: float, *, share: float) -> float:
    """N_active^(1 - share) · N_total^share: what a mixture of experts is worth in dense parameters; share 0 counts active ones only."""
    return active * (total / active) ** share


def moe_family_loss(active: float, total: float, tokens: float, *, E: float, A: float, B: float, alpha: float, beta: float, share: float) -> float:
    """E + A / (N_active^(1 - share) · N_total^share)^alpha + B / D^beta, for one family of mixtures of experts (same routing, same data).

    Our own form: the parameter term of the joint MoE law (below) with gamma = 0 and experts counted as total / active, where it reads
    a·Ê^delta·N^alpha and share = delta / alpha. At total = active it is chinchilla_loss; it falls in each of its three arguments.
    """
    return chinchilla_loss(effective_params(active, total, share=share), tokens, E=E, A=A, B=B, alpha=alpha, beta=beta)


def direct_accuracy(log_shortfall: float, *, chance: float) -> float:
    """chance + (1 - chance)·e^(-s) with s = e^log_shortfall = -log Q', Q' = (accuracy - chance)/(1 - chance) (Apple 2025, arXiv 2512.08894).

    s = A / C^alpha, A / (N^alpha · D^beta) or A / N^alpha + B / D^beta: scaling_tasks.py fits all three.
    """
    return chance + (1.0 - chance) * np.exp(-np.exp(log_shortfall))


def chinchilla_loss(n: float, d: float, *, E: float, A: float, B: float, alpha: float, beta: float) -> float:
    """E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, equation 2)."""
    return E + A * n**-alpha + B * d**-beta


def tied_loss(n: float, tokens_per_param: float, *, E: float, a: float, b: float, c: float) -> float:
    """E + a·N^c + b·6^(c/2)·(M·N)^c with M = D/N (Gadre et al. 2024, arXiv 2403.08540, written in N instead of compute); c < 0."""
    return E + a * n**c + b * 6.0 ** (c / 2) * (tokens_per_param * n) ** c


def error_from_loss(loss: float, *, epsilon: float, k: float, gamma: float) -> float:
    """Mean top-1 error = epsilon - k·e^(-gamma·L) (Gadre et al. 2024, equation 5)."""
    return epsilon - k * np.exp(-gamma * loss)


def accuracy_from_loss(loss: float, *, chance: float, level: float, slope: float, pivot: float) -> float:
    """chance + (1 - chance) / (1 + e^(-(level - slope·(L - pivot)))): accuracy between ``chance`` (or another floor) and 1, rising as loss falls."""
    return chance + (1.0 - chance) / (1.0 + np.exp(-(level - slope * (loss - pivot))))


# Joint MoE scaling law (arXiv 2502.05172, 2025): top-1 Switch models, 280 runs, held-out RMSE .0039.
_JOINT = {"a": 35.91, "alpha": -0.1889, "delta": -0.2285, "gamma": 0.0098, "b": 35.98, "beta": -0.1775, "omega": 0.5529, "zeta": -0.0259, "c": 1.3637}
_E_START, _E_MAX = 2.0732, 290.4521


def saturated_experts(experts: float) -> float:
    """Ê of the joint MoE law: E experts behave like Ê; Ê(1) = E_start = 2.07 and Ê → E_max = 290 (Clark et al. 2022, equation 8)."""
    return 1.0 / (1.0 / (experts - 1.0 + 1.0 / (1.0 / _E_START - 1.0 / _E_MAX)) + 1.0 / _E_MAX)


def joint_moe_loss(active_params: float, tokens: float, experts: float) -> float:
    """Loss of a top-1 mixture of experts from active parameters, tokens and experts (arXiv 2502.05172, table 3 coefficients).

    a·Ê^delta·N^(alpha + gamma·ln Ê) + b·Ê^omega·D^(beta + zeta·ln Ê) + c. It was fitted on another data set and top-1 routing: use it
    for shapes and comparisons (what more experts buy), not as the loss of a fine-grained top-4 model.
    """
    e_hat = saturated_experts(experts)
    log_e = np.log(e_hat)
    params_term = _JOINT["a"] * e_hat ** _JOINT["delta"] * active_params ** (_JOINT["alpha"] + _JOINT["gamma"] * log_e)
    tokens_term = _JOINT["b"] * e_hat ** _JOINT["omega"] * tokens ** (_JOINT["beta"] + _JOINT["zeta"] * log_e)
    return float(params_term + tokens_term + _JOINT["c"])
