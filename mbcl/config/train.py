"""The blocks ``train`` and ``schedule`` of an experiment."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator

from mbcl.config.base import ConfigModel, PathConfigError
from mbcl.errors import ConfigError

Precision = Literal["float32", "float64", "bf16", "fp16"]


class Accumulation(ConfigModel):
    """Gradient accumulation: the batch is processed in chunks, to save memory."""

    mode: Literal["none", "cached", "plain"] = "none"
    """`cached`: GradCache, two passes over the chunks; loss, batch norms and gradient are those of the whole batch.
    `plain`: the mean of the chunks' own losses, which has fewer negatives and is another objective; the published
    option."""
    chunk_size: int | None = Field(default=None, ge=2)
    """Samples of a chunk of the global batch, a divisor of `batch_size`."""

    @model_validator(mode="after")
    def _chunks_where_needed(self) -> Accumulation:
        if self.mode == "none" and self.chunk_size is not None:
            raise PathConfigError("chunk_size", f"not used with mode none, found {self.chunk_size}")
        if self.mode != "none" and self.chunk_size is None:
            raise PathConfigError("chunk_size", f"mode {self.mode} needs the samples of a chunk, found null")
        return self


class Train(ConfigModel):
    """Duration, batch size, checkpoints and numerics of the training."""

    epochs: int = Field(default=100, ge=1)
    """Passes over the training images."""
    batch_size: int = Field(default=32, ge=2)
    """The global batch, over all workers."""
    accumulation: Accumulation = Accumulation()
    """Large batches in less memory."""
    eval_every: int = Field(default=1, ge=1)
    """Epochs between two validations; the last epoch always has one."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Checkpoints of the last so many epochs are kept, and the best one."""
    checkpoint_steps: int | None = Field(default=None, ge=1)
    """Also write a checkpoint every so many steps within an epoch."""
    precision: Precision = "float32"
    """The dtype of weights and views, or autocast of the network; losses and plans stay float32 or better. `float64`
    shows whether two results differ by more than rounding."""
    channels_last: Literal["auto", True, False] = "auto"
    """Memory format of images and convolutions. `auto`: channels last for encoders with convolutions, on a CPU except
    in float64, on a GPU in `bf16` and `fp16`."""
    compile: bool = False
    """Use `torch.compile`; not with `cached` accumulation."""
    sync_batchnorm: bool = True
    """Batch norm over the global batch, or over each worker's part; `cached` accumulation needs `true`."""
    threads: int | None = Field(default=None, ge=1)
    """Torch's threads of a process, on whose number the last bits of sums depend. Null: those of the trial's resources,
    or torch's own number. Configurations that a training writes have its number."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights, gradients, optimiser state and the model's input views; autocast does not change it."""
        return torch.float64 if self.precision == "float64" else torch.float32

    @model_validator(mode="after")
    def _options_fit(self) -> Train:
        if (size := self.accumulation.chunk_size) is not None and self.batch_size % size:
            message = f"found {size}, which does not divide batch_size {self.batch_size}"
            raise PathConfigError("accumulation.chunk_size", message)
        if self.accumulation.mode == "cached":
            if self.compile:
                raise PathConfigError("compile", "found true, which does not go with cached accumulation")
            if not self.sync_batchnorm:
                message = "found false, but cached accumulation normalises over the whole batch"
                raise PathConfigError("sync_batchnorm", message)
        return self

    def check_workers(self, workers: int) -> None:
        """Refuse a number of workers that does not divide a batch, or a chunk of it, evenly.

        Raises:
            ConfigError: names the key and the numbers.
        """
        for key, size in (("batch_size", self.batch_size), ("accumulation.chunk_size", self.accumulation.chunk_size)):
            if size is not None and size % workers:
                raise ConfigError(f"train.{key}: {size} is not divisible by {workers} workers")


class Schedule(ConfigModel):
    """The learning-rate schedule over the epochs."""

    warmup_epochs: float = Field(default=10, ge=0)
    """Linear warm-up from 0, then half a cosine to 0; both advance by step."""
    scale_lr: Literal["sqrt", "linear", "none"] = "sqrt"
    """The rate is `lr` × √B (`sqrt`), `lr` × B / 256 (`linear`) or `lr` (`none`) with the global batch B."""
