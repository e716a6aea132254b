"""Scaling laws in closed form: loss from parameters and tokens, accuracy from loss. Pure functions, no fitting.

Units everywhere: N parameters, D training tokens, loss in nats per token.
Change here: a law. Not here: fitting one and its intervals (scaling_fit.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Exponents published for the form of chinchilla_loss: (alpha, beta).
HOFFMANN = (0.3392, 0.2849)  # Hoffmann et al. 2022 (arXiv 2203.15556), approach 3, unrounded values of its LaTeX source
BESIROGLU = (0.3478, 0.3658)  # Besiroglu et al. 2024 (arXiv 2404.10102), the same data fitted again


@dataclass(frozen=True)
class RunPoint:
    """One finished training: N parameters, D tokens, the loss it reached (nats per token)."""

    params: float
    tokens: float
    loss: float

    def __post_init__(self) -> None:
        if not (self.params > 0 and self.tokens > 0 and self.loss > 0):
            raise ValueError(f"A run needs positive params, tokens and loss, not {self.params}, {self.tokens}, {self.loss}.")


@dataclass(frozen=True)
class LossLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta in nats per token; for the form ``power``, A / (N^alpha · D^beta) without a floor, which is
    what losses far above any floor follow (Kaplan et al. 2020, section 3). ``form`` says which coefficients were free."""

    form: str
    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def predict(self, params: float, tokens: float) -> float:
        """Loss of a model of ``params`` parameters trained on ``tokens`` tokens."""
        if self.form == "power":
            return float(self.A * params**-self.alpha * tokens**-self.beta)
        return float(chinchilla_loss(params, tokens, E=self.E, A=self.A, B=self.B, alpha=self.alpha, beta=self.beta))


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
    """chance + (1 - chance) / (1 + e^(-(level - slope·(L - pivot)))): accuracy between chance and 1 that rises as loss falls."""
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
