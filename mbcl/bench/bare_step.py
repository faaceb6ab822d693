"""The step of every training: forward, loss, backward, optimiser. Alone it is the ceiling of a machine.

Letters: B samples of a batch, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mbcl.config.experiment import Experiment
from mbcl.data import ImageSet
from mbcl.engine.embedding_pass import ViewKey, two_views
from mbcl.engine.freed_memory import keep_freed_memory
from mbcl.engine.precision import Compute, compiled
from mbcl.engine.setup import model_of
from mbcl.functional import raise_half

CAPTURE_WARM_UP = 3
"""Steps before a capture, the number of torch's documentation."""


class BareStep:
    """Model, objective and optimiser of an experiment, and their step on views that are in memory.

    Args:
        experiment: the configuration; its sampler and schedule are not used.
        device: where to compute.

    Raises:
        ConfigError: if ``train.compile`` is set but torch.compile does not work on this machine.
    """

    def __init__(self, experiment: Experiment, device: torch.device) -> None:
        self.device = device
        if device.type == "cpu":
            keep_freed_memory()
        self.dtype = experiment.train.dtype
        self.model = model_of(experiment, in_channels=3)
        self.compute = Compute.of(experiment.train, device, self.model)
        self.compute.place(self.model).train()
        self.network = compiled(self.model, device) if experiment.train.compile else self.model
        self.objective = experiment.build_objective().to(device)
        self.optimizer = experiment.build_optimizer(self.model.parameters())
        self.scaler = self.compute.scaler()

    def __call__(self, views: Tensor) -> Tensor:
        """Train on the views, (2B, 3, S, S): all first views, then all second ones; returns the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.backward(views)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss

    def backward(self, views: Tensor) -> Tensor:
        """Compute the loss of the views and the gradients; returns the loss, detached."""
        with self.compute.autocast():
            projections = self.network(views)
        z1, z2 = raise_half(projections).chunk(2)
        loss: Tensor = self.objective(z1, z2)
        self.scaler.scale(loss).backward()
        return loss.detach()

    def place(self, views: Tensor) -> Tensor:
        """Move views to the device, in the dtype of the weights and the memory format of the convolutions."""
        return self.compute.layout(views.to(self.device, self.dtype, non_blocking=True))

    def fixed_views(self, images: ImageSet, batch_size: int, seed: int) -> Tensor:
        """Make the views of the first batch, (2B, 3, S, S), in place for the step."""
        views = two_views(images.to(self.device), torch.arange(batch_size), ViewKey(seed))
        return self.place(views)

    def capture(self, views: Tensor) -> Callable[[], Tensor]:
        """Capture the step on these views as one CUDA graph, which starts all its kernels with one call.

        The learning rate and the memory of the views are part of the graph. Not for fp16, whose scaler waits for the
        device.

        Returns:
            A function that replays the step and returns its loss, a tensor that the next replay overwrites.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries and the optimiser allocate their state before the capture
            for _ in range(CAPTURE_WARM_UP):
                self(views)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)  # the graph allocates gradients of its own
        with torch.cuda.graph(graph):
            loss = self(views)

        def replay() -> Tensor:
            graph.replay()
            return loss

        return replay
