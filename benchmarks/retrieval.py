"""Time and memory of retrieval among many samples.

python benchmarks/retrieval.py [SAMPLES] [DIMENSIONS]
"""

import resource
import sys
import time

import torch

from mbcl.metrics import retrieval

num_samples, dim = (int(sys.argv[i]) if len(sys.argv) > i else default for i, default in ((1, 100_000), (2, 128)))
generator = torch.Generator().manual_seed(0)
u = torch.randn(num_samples, dim, generator=generator)
v = u + torch.randn(num_samples, dim, generator=generator)
retrieval(u[:2000], v[:2000])  # code is loaded, threads run
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
found = retrieval(u, v)
seconds = time.perf_counter() - start
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(
    f"{num_samples:,} x {num_samples:,}, {dim} dimensions, both directions, {torch.get_num_threads()} thread(s): "
    f"{seconds:.1f} s, {(after - before) / 1024:.0f} MiB above inputs and code, {after / 1024:.0f} MiB in all; "
    f"u2v/top1 {found['u2v/top1']:.4f}"
)
