"""HCL: higher weights for hard negatives, and a correction for false negatives."""

from __future__ import annotations

from mbcl.functional import HardNegatives, check_choice, check_number, hcl
from mbcl.objectives._base import OBJECTIVES
from mbcl.objectives._stateless import StatelessObjective


@OBJECTIVES.register("hcl")
class HCL(StatelessObjective):
    """Contrastive loss whose negatives are weighted by their similarity and corrected for false ones.

    Details of the definition and its numerics: :func:`mbcl.functional.hcl`.

    Formula:
        The mean over the 2B anchors of log(1 + G / P), with P = exp(positive / t) and G the sum over the N = 2B - 2
        negatives, each weighted by exp(beta · similarity / t) as a share of the mean weight, less tau_plus · N · P,
        over 1 - tau_plus, at least N exp(-1 / t).

    Cost:
        (2B)² similarities a step.

    When to use:
        With ``shuffle`` above all: its weights emphasise hard negatives within a batch, while ``osgd`` and ``spectral``
        choose batches with hard negatives. With these samplers both effects add up, and the correction counters the
        samples of one class that they put into a batch. If samples are well separated at a temperature of 0.1, every
        anchor can be at the lower bound of the correction, with a loss near 0 and hardly a gradient.

    Args:
        temperature: above 0; divides the cosines.
        tau_plus: in [0, 1); the share of samples that are of an anchor's class. 0: no correction.
        beta: at least 0; the exponent of the weights of hard negatives. 0: equal weights.
        estimator: ``hard``, or ``easy``: neither weights nor correction (``tau_plus`` and ``beta`` are not used),
            which is SimCLR's loss.

    Reference:
        Robinson et al., Contrastive Learning with Hard Negative Samples, arXiv 2010.04592; Chuang et al., Debiased
        Contrastive Learning, arXiv 2007.00224.

    Example:
        >>> import torch
        >>> HCL(temperature=1.0)(torch.eye(2), torch.eye(2))
        tensor(0.4671)
    """

    loss = staticmethod(hcl)

    def __init__(
        self, *, temperature: float = 0.1, tau_plus: float = 0.1, beta: float = 1.0, estimator: HardNegatives = "hard"
    ) -> None:
        super().__init__(temperature=temperature)
        self.tau_plus = check_number("tau_plus", tau_plus, least=0.0, below=1.0)
        self.beta = check_number("beta", beta, least=0.0)
        check_choice("estimator", estimator, ("hard", "easy"))
        self.estimator = estimator

    def settings(self) -> dict[str, object]:
        """Return the parameters as keyword arguments of the loss function."""
        return super().settings() | {"tau_plus": self.tau_plus, "beta": self.beta, "estimator": self.estimator}
