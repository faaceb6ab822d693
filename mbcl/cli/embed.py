"""``mbcl embed``: embeddings of images for ``mbcl plan`` and other programs. Heavy imports are lazy."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from mbcl.errors import ConfigError, pluralize


def add_embed(commands: Any) -> None:
    """Add ``embed`` to the commands."""
    embed = commands.add_parser(
        "embed",
        help="embed images with a checkpoint or an export, for `mbcl plan`",
        description="Embed the images of a data set, or your own, with trained weights, and write an .npz file that "
        "`mbcl plan --embeddings` takes: z1 and z2 of two augmented views, labels where there are any, and the names "
        "of the files. `--data image_folder --data-dir DIR --split all` embeds all images of a folder.",
    )
    checkpoint = "output folder of a training (it contains checkpoints/), one checkpoint folder, or an export"
    embed.option("--checkpoint", "DIR", checkpoint, required=True)
    embed.option("--data", "NAME", "another data set than that of the training")
    embed.option("--data-dir", "DIR", "folder of the images")
    embed.overrides("override a key of the block data, e.g. image_size=64")
    splits = ("train", "validation", "test", "all")
    which = "the images: a split, or all, in the order train, validation, test"
    embed.option("--split", None, which, "train", choices=splits)
    embed.flag("--features", "write features of the encoder instead of projections")
    embed.flag("--clean", "embed the images as they are, not two augmented views; z1 and z2 are equal then")
    embed.plugins(note=" that the training used")
    embed.option("--device", None, "cpu or cuda", "cpu")
    embed.flag("--overwrite", "replace an existing file")
    embed.option("--out", "FILE", "the file, a name that ends in .npz", required=True)
    embed.set_defaults(run=_embed)


def _embed(arguments: argparse.Namespace) -> int:
    from mbcl.cli.evaluate import data_of
    from mbcl.config.base import apply_overrides, validate
    from mbcl.config.data import Data
    from mbcl.engine.checkpoint import folder_and_checkpoint
    from mbcl.evaluation import find_weights
    from mbcl.evaluation.embed import embed_images
    from mbcl.io.files import atomic_write
    from mbcl.io.npz import to_npz
    from mbcl.io.store import local_path, open_store

    out = local_path(arguments.out)
    if out.suffix != ".npz":
        raise ConfigError(f"--out: expected the name of an .npz file, found {arguments.out}")
    if out.exists() and not arguments.overwrite:
        raise ConfigError(f"--out: {out} exists already; --overwrite replaces it")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out: {out.absolute().parent} is no folder")
    folder, checkpoint = folder_and_checkpoint(arguments.checkpoint)
    weights = find_weights(open_store(folder), checkpoint)
    content = data_of(weights.experiment, arguments.data, arguments.data_dir).model_dump(mode="json")
    apply_overrides(content, arguments.set)
    data = validate(Data, content, "data")
    embedded = embed_images(
        weights,
        data,
        split=arguments.split,
        features=arguments.features,
        augmented=not arguments.clean,
        device=arguments.device,
    )
    with atomic_write(out) as stream:
        stream.write(to_npz(**embedded.arrays()))
    number, dimensions = embedded.z1.shape
    kind = "feature" if arguments.features else "projection"
    labels = "with labels" if embedded.labels is not None else "without labels"
    sys.stdout.write(
        f"{out}: {pluralize(number, kind, ',')} of {pluralize(dimensions, 'dimension')} of {data.name} "
        f"({arguments.split}), {labels}\n"
        f"mbcl plan --embeddings {out} --sampler refined --out plan.npz\n"
    )
    return 0
