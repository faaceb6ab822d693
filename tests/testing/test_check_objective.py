"""Objectives that break one promise each: ``check_objective`` names it."""

from __future__ import annotations

import importlib
import re
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mbcl.errors import ConfigError
from mbcl.functional import check_temperature, normalize, nt_xent
from mbcl.objectives import OBJECTIVES, Candidates, Objective, SimCLR, SogCLR, StatelessObjective
from mbcl.testing import check_objective


class Own(StatelessObjective):
    """Keeps every promise; a subclass changes the loss."""

    loss = staticmethod(nt_xent)


class Alone(Objective):
    """Distances of the views of a sample: nothing of other ranks is needed."""

    distribution = "local"

    def forward(
        self, z1: Tensor, z2: Tensor, indices: Tensor | None = None, *, candidates: Candidates | None = None
    ) -> Tensor:
        return (normalize(z1) - normalize(z2)).square().sum(dim=1).mean()


class GathersWithoutGradient(Own):
    """The published fault: the others' projections are constants."""

    def forward(self, z1, z2, indices=None, *, candidates=None):
        if candidates is not None:
            candidates = Candidates(candidates.z1.detach(), candidates.z2.detach(), candidates.offset)
        return super().forward(z1, z2, indices, candidates=candidates)


class DividesByTheRank(Own):
    def forward(self, z1, z2, indices=None, *, candidates=None):
        loss = super().forward(z1, z2, indices, candidates=candidates)
        return loss if candidates is None else loss * len(candidates.z1) / len(z1)


class IgnoresCandidates(Own):
    def forward(self, z1, z2, indices=None, *, candidates=None):
        return super().forward(z1, z2, indices)


class FailsWithCandidates(Own):
    def forward(self, z1, z2, indices=None, *, candidates=None):
        if candidates is not None:
            raise RuntimeError("one process only")
        return super().forward(z1, z2, indices)


class ContrastsItsPart(Objective):
    """NT-Xent of each rank's part: another objective on every number of workers."""

    distribution = "local"

    def forward(self, z1, z2, indices=None, *, candidates=None):
        return nt_xent(z1, z2, temperature=0.5)


class NotLocal(Alone):
    """Says that it needs nothing of others, and knows of them."""

    def forward(self, z1, z2, indices=None, *, candidates=None):
        from mbcl.distributed import collectives

        loss = super().forward(z1, z2)
        return loss + collectives.all_reduce_sum(loss, collectives.current()) - loss.detach()


class WrongGradient(Own):
    def forward(self, z1, z2, indices=None, *, candidates=None):
        return super().forward(z1, z2.detach(), indices, candidates=candidates) + 0 * z2.sum()


class NoGradient(Own):
    def forward(self, z1, z2, indices=None, *, candidates=None):
        return super().forward(z1.detach(), z2.detach(), indices)


class ReadsTheOrder(Own):
    def forward(self, z1, z2, indices=None, *, candidates=None):
        weights = torch.arange(1.0, len(z1) + 1, dtype=z1.dtype)[:, None]
        return super().forward(z1, z2, indices, candidates=candidates) + (weights * z1 * z2).mean()


class DropsOut(Own):
    def forward(self, z1, z2, indices=None, *, candidates=None):
        return super().forward(nn.functional.dropout(z1), z2, indices, candidates=candidates)


class Divides(Own):
    """The length of a zero row has no inverse."""

    def forward(self, z1, z2, indices=None, *, candidates=None):
        return super().forward(z1 / z1.norm(dim=-1, keepdim=True), z2, indices)


class PerAnchor(Own):
    def forward(self, z1, z2, indices=None, *, candidates=None):
        return super().forward(z1, z2, indices).expand(len(z1))


class Lowers(Own):
    def forward(self, z1, z2, indices=None, *, candidates=None):
        return super().forward(z1, z2, indices, candidates=candidates).half()


class TakesAnyTemperature(Own):
    def __init__(self, *, temperature: float = 0.1) -> None:
        super().__init__(temperature=max(1e-6, temperature) if temperature == temperature else 1.0)
        self.given = temperature


class Learns(Own):
    """A parameter, though no state is declared."""

    def __init__(self, *, temperature: float = 0.1) -> None:
        super().__init__(temperature=check_temperature(temperature))
        self.scale = nn.Parameter(torch.ones(()))


class SaysState(Own):
    distribution = "state"


class UnknownDistribution(Own):
    distribution = "everything"


class CommitsItsPart(SogCLR):
    """State that differs between the ranks."""

    def commit(self, indices: Tensor, values: Tensor) -> None:
        from mbcl.distributed import collectives

        world = collectives.current()
        super().commit(indices.chunk(world.size)[world.rank], values.chunk(world.size)[world.rank])


class CountsEvaluations(SogCLR):
    def forward(self, z1, z2, indices=None, *, candidates=None):
        if not self.training:
            self.num_updates += 1
        return super().forward(z1, z2, indices, candidates=candidates)


class ForgetsItsState(SogCLR):
    def load_state_dict(self, state, *arguments, **others):
        return None


class DoesNotPickle(Own):
    def __reduce__(self):
        raise TypeError("cannot pickle a lock")

    def __deepcopy__(self, memo):
        return self


IN_ONE_PROCESS: list[tuple[Any, str]] = [
    (WrongGradient, "objective 'WrongGradient': gradients: promised those of the loss by finite differences"),
    (NoGradient, "gradients: promised a loss with gradients"),
    (ReadsTheOrder, "order of the batch: promised the same loss for every order of the samples, to 1e-09"),
    (DropsOut, "global random state: promised equal losses of equal batches"),
    (Divides, r"loss: promised a finite scalar in torch.float32, found nan .*\(zero rows, equal views\)"),
    (PerAnchor, r"loss: promised a finite scalar in torch.float64, found shape \(8,\)"),
    (Lowers, "loss: promised a finite scalar in torch.float64, found .* in torch.float16"),
    (TakesAnyTemperature, "temperature: promised a ConfigError for 0.0, found none"),
    (Learns, r"distribution: promised buffers or parameters if and only if .*, found 'candidates' and \['scale'\]"),
    (SaysState, "distribution: promised a StatefulObjective if and only if it is 'state', found 'state' and none"),
    (UnknownDistribution, "distribution: promised 'local', 'candidates' or 'state', found 'everything'"),
    (lambda: CountsEvaluations(num_samples=8), "evaluation mode: .* found that num_updates changed"),
    (lambda: ForgetsItsState(num_samples=8), "state dict: promised the loss .* after a round trip"),
    (DoesNotPickle, "picklable: promised an objective that pickles, found TypeError: cannot pickle a lock"),
    (nn.Identity, "objective 'Identity': type: promised a subclass of mbcl.objectives.Objective, found Identity"),
]
ON_WORKERS: list[tuple[Any, str]] = [
    (
        GathersWithoutGradient,
        "'GathersWithoutGradient': distribution 'candidates': promised gradients of the whole batch",
    ),
    (
        DividesByTheRank,
        "distribution 'candidates': promised loss of the whole batch in one process to 1e-09 on 2 workers",
    ),
    (IgnoresCandidates, "distribution 'candidates': promised loss of the whole batch"),
    (
        FailsWithCandidates,
        "distribution 'candidates': promised steps on 2 workers, found RuntimeError: one process only",
    ),
    (NotLocal, "distribution 'local': promised loss of the whole batch"),
    (ContrastsItsPart, "distribution 'local': promised loss of the whole batch"),
    (lambda: CommitsItsPart(num_samples=8), "distribution 'state': promised state 'u' of the whole batch"),
]


def names(message: str, call: Any, **options: Any) -> None:
    with pytest.raises(AssertionError) as raised:
        check_objective(call(), **options)
    assert re.search(message, str(raised.value)), raised.value
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("objective", "message"), IN_ONE_PROCESS, ids=range(len(IN_ONE_PROCESS)))
def test_a_broken_promise_is_named_in_one_line(objective, message):
    names(message, objective, num_workers=1)


@pytest.mark.dist
@pytest.mark.parametrize(("objective", "message"), ON_WORKERS, ids=range(len(ON_WORKERS)))
def test_a_broken_distribution_is_named_in_one_line(objective, message):
    names(message, objective)


@pytest.mark.dist
@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_registered_objectives_have_the_steps_of_one_process_on_two_workers(name):
    check_objective(name)


@pytest.mark.dist
@pytest.mark.parametrize("objective", [Own(temperature=0.5), Alone()])
def test_objectives_outside_the_package_pass(objective):
    check_objective(objective)


OUTSIDE = """
from mbcl.functional import nt_xent
from mbcl.objectives import StatelessObjective


class Outside(StatelessObjective):
    loss = staticmethod(nt_xent)
"""


@pytest.mark.dist
def test_processes_import_from_where_the_caller_does(tmp_path, monkeypatch):
    """Those of earlier calls, too."""
    check_objective("clip")
    (tmp_path / "outside_of_mbcl.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    objective = importlib.import_module("outside_of_mbcl").Outside()
    try:
        check_objective(objective)
    finally:
        del sys.modules["outside_of_mbcl"]


def test_an_objective_within_a_function_does_not_pickle():
    class Within(Own):
        pass

    names("objective 'Within': picklable: promised an objective that pickles, found ", Within)


def test_an_objective_is_left_as_it_was():
    objective = SogCLR(num_samples=9)
    z = torch.eye(3)
    objective(z, z, torch.tensor([4, 8, 1]))
    before = objective.u.clone()
    check_objective(objective.eval(), num_workers=1)
    assert torch.equal(objective.u, before)
    assert not objective.training


def test_a_name_takes_parameters_and_an_objective_none():
    check_objective("sog", num_workers=1, gamma=0.5)
    with pytest.raises(ConfigError, match="objective 'clip': unknown parameter 'gamma'"):
        check_objective("clip", num_workers=1, gamma=0.5)
    with pytest.raises(ConfigError, match="check_objective: parameters need the name of an objective"):
        check_objective(SimCLR(), num_workers=1, temperature=0.5)
    with pytest.raises(ConfigError, match="check_objective: num_workers must divide 8, found 3"):
        check_objective("clip", num_workers=3)
