"""Construction of data, model and learner from an experiment's configuration."""

from __future__ import annotations

from functools import partial

from mbcl.config.experiment import Experiment
from mbcl.data.samples import SampleSet
from mbcl.distributed.collectives import World
from mbcl.distributed.sync_batchnorm import convert_sync_batchnorm
from mbcl.engine.embedding_pass import ViewKey, set_statistics, two_views
from mbcl.engine.evaluation_checks import check_evaluation
from mbcl.engine.precision import Compute, compiled
from mbcl.engine.setup import DataSizes, SplitData, check_model, data_sizes, load_data
from mbcl.engine.step import Learner, wrap_ddp
from mbcl.models import ContrastiveModel


def load_parts(experiment: Experiment) -> tuple[SplitData, DataSizes, ContrastiveModel]:
    """Load the data, derive their sizes and the digest of their content, and build the model with its initial weights.

    Raises:
        ConfigError: if the data are missing or do not fit the experiment.
        OSError: if they cannot be read.
    """
    data = load_data(experiment.data, seed=experiment.seed)
    sizes = data_sizes(experiment, data)
    check_evaluation(experiment.evaluation, data, name=experiment.data.name, verify=experiment.data.verify)
    model = check_model(experiment, data)
    data.content()  # which it keeps; the caller has the other ranks wait for this, and end if it fails
    return data, sizes, model


def build_learner(
    experiment: Experiment, data: SplitData, model: ContrastiveModel, world: World, *, begins: bool = True
) -> Learner:
    """Build the learner of this rank as it is before the first step.

    ``model`` has its initial weights, the same on every rank, and is modified in place. Unless the training ``begins``,
    a checkpoint follows, whose statistics of batch norms need no pass over the images.

    Raises:
        ConfigError: if ``train.compile`` is set but torch.compile does not work on this machine.
    """
    train = experiment.train
    compute = Compute.of(train, world.device, model)
    images = data.train.to(world.device)
    if begins and experiment.embeddings.mode == "eval" and experiment.build_sampler().needs_embeddings:
        _set_statistics(experiment, model.to(world.device), images)
    if world.size > 1 and train.sync_batchnorm:
        model = convert_sync_batchnorm(model, world)
    model = compute.place(model).train()
    network = model if train.accumulation.mode == "cached" else wrap_ddp(model, world)
    return Learner(
        model=model,
        network=compiled(network, world.device) if train.compile else network,
        objective=experiment.build_objective(len(data.train)).to(world.device),
        optimizer=experiment.build_optimizer(model.parameters()),
        images=images,
        world=world,
        seed=Learner.views_seed(experiment.seed),
        compute=compute,
        accumulation=train.accumulation,
        synchronised=train.sync_batchnorm,
    )


def _set_statistics(experiment: Experiment, model: ContrastiveModel, images: SampleSet) -> None:
    """Set the running statistics that the first plans normalise with, from the views of epoch 0.

    Without any they would be 0 and 1, and after a few steps still mostly so. Every rank computes the same ones.
    """
    source = experiment.embeddings
    key = ViewKey(Learner.views_seed(experiment.seed), augmented=source.views == "augmented")
    views = partial(two_views, images, key=key)
    set_statistics(model, len(images), views, seed=experiment.seed, batch_size=source.batch_size)
