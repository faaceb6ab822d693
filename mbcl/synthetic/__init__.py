"""The synthetic study: N points on a sphere, moved directly by SGD on the batches that a sampler chose."""
