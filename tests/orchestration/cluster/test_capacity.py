from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbcl.config.base import validate
from mbcl.config.experiment import Experiment
from mbcl.engine import MemoryNeed
from mbcl.errors import ConfigError
from mbcl.orchestration.cluster.capacity import Node, TrialResources, max_concurrency, resolve_resources
from mbcl.orchestration.cluster.machine import usable_cpus, usable_memory
from mbcl.orchestration.search_space.expansion import expand
from mbcl.orchestration.search_space.resources_block import Resources
from mbcl.orchestration.search_space.schema import read_space
from mbcl.orchestration.search_space.trial_kinds import PRETRAINING
from mbcl.orchestration.trial.preflight import PreflightReport
from mbcl.orchestration.trial.trial_runners import allocate, runner_of

GPU_NODE = Node(8, 1)


@pytest.mark.parametrize(
    ("asked", "nodes", "cpus", "gpus", "threads", "concurrency"),
    [
        ({}, [Node(2)], 0.999, 0, 1, 2),
        ({"workers": 2}, [Node(2)], 0.999, 0, 1, 1),
        ({}, [Node(1)], 0.999, 0, 1, 1),
        ({}, [Node(4)], 0.999, 0, 1, 4),
        ({}, [Node(4), Node(2)], 0.997, 0, 1, 6),
        ({"max_concurrent_trials": 2}, [Node(2)], 0.999, 0, 1, 2),
        ({"max_concurrent_trials": 1}, [Node(8)], 0.999, 0, 1, 1),
        ({"cpus_per_worker": 4}, [Node(9)], 4.0, 0, 4, 2),
        ({}, [GPU_NODE, GPU_NODE], 1.998, 1, 1, 2),
        ({"workers": 2}, [GPU_NODE, GPU_NODE, GPU_NODE], 1.998, 1, 1, 1),
        ({"gpu": False}, [GPU_NODE], 0.999, 0, 1, 8),
        ({"workers": {"min": 1, "max": 4}}, [Node(2)], 0.499, 0, 1, 1),
        ({"workers": {"min": 1, "max": 8}}, [GPU_NODE, GPU_NODE], 1.999, 1, 1, 1),
        ({}, [Node(64)] * 16, 0.984, 0, 1, 1024),
        ({"cpus_per_worker": 1}, [Node(64)] * 16, 0.984, 0, 1, 1024),
        ({"cpus_per_worker": 1}, [Node(2)], 0.999, 0, 1, 2),
        ({"cpus_per_worker": 2}, [Node(2)], 1.999, 0, 2, 1),
        ({"cpus_per_worker": 1, "workers": 2}, [Node(2)], 0.999, 0, 1, 1),
        ({"cpus_per_worker": 0.5, "max_concurrent_trials": 4}, [Node(2)], 0.499, 0, 1, 4),
    ],
)
def test_resolve_resources_fills_in_cpus_gpus_and_threads(asked, nodes, cpus, gpus, threads, concurrency):
    resources = Resources(**asked)
    need = resolve_resources(resources, nodes)
    assert (need.cpus_per_worker, need.gpus_per_worker, need.threads) == (cpus, gpus, threads)
    assert max_concurrency(need, nodes, resources).num_trials == concurrency


@pytest.mark.parametrize(
    ("num_trials", "workers", "nodes", "threads", "concurrency"),
    [
        (100, 1, [Node(8)], 1, 8),
        (5, 1, [Node(8)], 1, 8),
        (3, 1, [Node(8)], 2, 4),
        (1, 1, [Node(8)], 4, 2),
        (1, 2, [Node(8)], 4, 1),
        (3, 2, [Node(8)], 1, 4),
        (3, 1, [Node(6), Node(3)], 3, 3),
        (2, 3, [Node(2)], 1, 1),
    ],
)
def test_resolve_resources_gives_few_trials_more_threads(num_trials, workers, nodes, threads, concurrency):
    """The number of threads changes the last bits of a result, so it must not depend on how many trials run now."""
    for limit in ("auto", 1):
        resources = Resources(workers=workers, max_concurrent_trials=limit)
        need = resolve_resources(resources, nodes, num_trials=num_trials)
        assert need.threads == threads
        assert max_concurrency(need, nodes, resources).num_trials == (concurrency if limit == "auto" else 1)


@given(st.integers(1, 8), st.lists(st.integers(1, 64), min_size=1, max_size=3), st.integers(1, 100))
def test_resolve_resources_adds_threads_only_where_no_trial_has_to_wait(workers, cpus, num_trials):
    nodes, resources = [Node(count) for count in cpus], Resources(workers=workers)

    def running(need: TrialResources) -> int:
        return min(num_trials, max_concurrency(need, nodes, resources).num_trials)

    try:
        need, single = (resolve_resources(resources, nodes, num_trials=number) for number in (num_trials, None))
        assert running(need) == running(single)
    except ConfigError:
        return
    wider = replace(need, cpus_per_worker=need.cpus_per_worker + 1)
    try:
        assert need.threads == 4 or need.cpus_per_worker < 0.9 or running(wider) < running(need)
    except ConfigError:
        return


@pytest.mark.parametrize(
    ("memory", "asked", "concurrency"),
    [(3 * 2**30, "auto", 2), (9 * 2**30, "auto", 1), (2**20, "auto", 4), (3 * 2**30, 3, 3), (None, "auto", 4)],
)
def test_max_concurrency_counts_memory_where_it_chooses(memory, asked, concurrency):
    resources, nodes = Resources(max_concurrent_trials=asked), [Node(4, 0, 7 * 2**30)]
    found = max_concurrency(resolve_resources(resources, nodes), nodes, resources, memory=memory)
    assert found.num_trials == concurrency
    assert ("7.0 GiB of free memory, of which a trial takes about" in found.limit) == (
        memory is not None and memory > 2**30 and asked == "auto"
    )


@pytest.mark.parametrize(
    ("asked", "nodes", "words"),
    [
        (
            {"max_concurrent_trials": 5},
            [Node(2)],
            "resources.max_concurrent_trials: found 5; 5 workers need at least 2.25 CPUs, there are 2",
        ),
        ({"workers": 8}, [Node(2)], "resources.workers: 8 workers need at least 3.6 CPUs, there are 2"),
        ({"gpu": True}, [Node(2)], "found gpu: true and workers: 1, which need 1 GPU; there are 0"),
        ({"workers": 4}, [GPU_NODE, GPU_NODE], "which need 4 GPUs; there are 2 (resources.gpu: false trains on CPUs)"),
        (
            {"cpus_per_worker": 4},
            [Node(2)],
            "it needs 1 worker with 4 CPU each; 4.001 CPU in all; there are 2 CPUs, of which",
        ),
        (
            {"cpus_per_worker": 3, "workers": 2},
            [Node(4), Node(2)],
            "room for 1 worker on 2 nodes, of which a trial",
        ),
        ({"max_concurrent_trials": 4, "cpus_per_worker": 1}, [Node(2)], "found 4, but only 2 fit"),
    ],
)
def test_max_concurrency_refuses_what_never_fits_with_numbers(asked, nodes, words):
    resources = Resources(**asked)
    with pytest.raises(ConfigError) as caught:
        max_concurrency(resolve_resources(resources, nodes), nodes, resources)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "nodes", "drivers", "trials", "words"),
    [
        ({}, [Node(4)], None, 4, "4 CPUs, of which a trial takes 1"),
        ({}, [GPU_NODE] * 3, None, 3, "3 GPUs, of which a trial takes 1"),
        ({"cpus_per_worker": 3, "gpu": False}, [Node(5)] * 3, None, 3, "room for 3 workers on 3 nodes, of which"),
        ({"max_concurrent_trials": 2}, [Node(8)], None, 2, "resources.max_concurrent_trials"),
        ({"gpu": False, "cpus_per_worker": 1}, [Node(8)], 5, 2, "5 of the resource 'driver', of which a trial takes 2"),
        ({"cpus_per_worker": 8}, [Node(8)], 1000, 1, "8 CPUs, of which a trial takes 7.999"),
    ],
)
def test_max_concurrency_names_the_scarcest_resource(asked, nodes, drivers, trials, words):
    resources = Resources(**asked)
    concurrency = max_concurrency(resolve_resources(resources, nodes), nodes, resources, drivers=drivers)
    assert concurrency.num_trials == trials
    assert words in concurrency.limit
    assert str(concurrency).startswith(f"{trials} at a time (")


def test_max_concurrency_reserves_drivers_beside_workers():
    """A driver on the first node leaves 1.999 CPUs there; a worker of 2 would wait forever."""
    nodes, resources = [Node(2), Node(2), Node(1)], Resources(workers=2, cpus_per_worker=2)
    need = resolve_resources(resources, nodes)
    assert max_concurrency(need, nodes, resources).num_trials == 1
    with pytest.raises(ConfigError, match="room for 0 workers on 3 nodes"):
        max_concurrency(replace(need, cpus_per_worker=2.0), nodes, resources)
    assert max_concurrency(resolve_resources(resources, nodes), nodes, resources, drivers=1000).num_trials == 1
    with pytest.raises(ConfigError, match="1 of the resource 'driver', of which a trial takes 2"):
        max_concurrency(resolve_resources(resources, nodes), nodes, resources, drivers=1)


@given(st.integers(1, 8), st.lists(st.integers(1, 64), min_size=1, max_size=3), st.integers(1, 4))
def test_max_concurrency_counts_trials_that_fit_together(workers, cpus, limit):
    nodes = [Node(count) for count in cpus]
    resources = Resources(workers=workers, max_concurrent_trials=limit)
    try:
        need = resolve_resources(resources, nodes)
        num_trials = max_concurrency(need, nodes, resources).num_trials
    except ConfigError:
        return
    assert num_trials == limit
    assert num_trials * need.cpus <= sum(cpus) + 1e-9


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1),
        ("0::/a/b", {"a/b/cpu.max": "300000 100000", "cpu.max": "max 100000"}, 3),
        ("0::/the/hosts/path", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "10000 100000"}, 1),
        ("0::/", {}, 64),
        ("4:cpu,cpuacct:/x", {"cpu/x/cpu.cfs_quota_us": "250000", "cpu/x/cpu.cfs_period_us": "100000"}, 2),
        ("4:cpu,cpuacct:/x", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, 64),
        ("7:memory:/x", {"x/cpu.max": "100000 100000"}, 64),
    ],
)
def test_usable_cpus_respects_cgroup_quotas(tmp_path, monkeypatch, membership, files, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)), raising=False)
    for name, content in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(content + "\n")
    (tmp_path / "membership").write_text(membership + "\n")
    assert usable_cpus(tmp_path / "groups", tmp_path / "membership") == expected


@pytest.mark.parametrize(
    ("membership", "files", "gibibytes"),
    [
        ("0::/", {}, 8),
        ("0::/a", {"a/memory.max": "max", "a/memory.current": "1", "a/memory.stat": "inactive_file 0"}, 8),
        ("0::/a", {"a/memory.max": 4, "a/memory.current": 3, "a/memory.stat": "inactive_file 1073741824"}, 2),
        ("0::/a/b", {"a/memory.max": 2, "a/memory.current": 3, "a/memory.stat": "inactive_file 0"}, 0),
        ("0::/a", {"a/memory.max": 4, "a/memory.current": 3}, 8),
        (
            "3:memory:/x",
            {
                "memory/x/memory.limit_in_bytes": 5,
                "memory/x/memory.usage_in_bytes": 2,
                "memory/x/memory.stat": "total_inactive_file 0",
            },
            3,
        ),
    ],
)
def test_usable_memory_respects_limits_of_cgroups(tmp_path, membership, files, gibibytes):
    for name, content in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        text = str(content * 2**30) if isinstance(content, int) else content
        (tmp_path / "groups" / name).write_text(text + "\n")
    (tmp_path / "membership").write_text(membership + "\n")
    (tmp_path / "meminfo").write_text("MemTotal: 99999999 kB\nMemAvailable: 8388608 kB\n")
    found = usable_memory(tmp_path / "groups", tmp_path / "membership", tmp_path / "meminfo")
    assert found == gibibytes * 2**30


def test_usable_memory_is_unknown_where_the_system_does_not_say(tmp_path):
    assert usable_memory(tmp_path, tmp_path / "none", tmp_path / "none") is None


def test_usable_cpus_without_cgroups_is_the_affinity(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    assert usable_cpus(tmp_path, tmp_path / "none") == 3


@pytest.mark.parametrize("overlap,cpus,pools,tasks", [(0, 8, 39, 8), (0, 8, 3, 3), (1, 8, 39, 6), (1, 2, 39, 1)])
def test_planning_tasks_with_overlap_leave_the_cores_of_training(overlap, cpus, pools, tasks):
    experiment = validate(Experiment, {"planner": {"overlap": overlap}}, "x")
    need = TrialResources(workers=2, cpus_per_worker=1.0, gpus_per_worker=0, threads=1)
    assert runner_of(Experiment).planning_tasks(experiment, need, cpus, pools) == tasks


@pytest.mark.parametrize(
    ("nodes", "asked", "workers"),
    [
        ([GPU_NODE] * 6, {"min": 1, "max": 4}, 4),
        ([GPU_NODE] * 3, {"min": 1, "max": 4}, 3),
        ([GPU_NODE], {"min": 1, "max": 4}, 1),
        ([Node(1)], {"min": 1, "max": 4}, 2),
    ],
)
def test_resolve_resources_of_a_range_takes_the_most_workers_that_fit(nodes, asked, workers):
    assert resolve_resources(Resources(workers=asked), nodes).workers == workers


def test_trial_resources_of_a_range_reserve_workers_that_divide_the_batch(space_file):
    space = space_file({"resources": {"workers": {"min": 1, "max": 3}}, "space/train.batch_size": {"grid": [16, 32]}})
    file = read_space(space)
    assert (trials := expand(file)).numbers_of_workers(file.space) == [1, 2]
    assert allocate(file.space, trials, [Node(2)])[0].workers == 2


def test_allocate_counts_the_memory_of_training_only_where_trials_train(space_file):
    file = read_space(space_file({"seeds": [0, 1]}))
    nodes, preflight = [Node(2, memory=2**30)], PreflightReport({0: 0}, {}, (), MemoryNeed(2**29, 0, 0))
    trials = expand(file)
    assert allocate(file.space, trials, nodes, preflight=preflight)[1].num_trials == 1
    assert allocate(file.space, trials, nodes, preflight=preflight, evaluation_alone=True)[1].num_trials == 2


def test_resolve_resources_of_a_range_names_its_least_when_none_fits():
    with pytest.raises(ConfigError, match="workers: 2, which need 2 GPUs; there are 1"):
        resolve_resources(Resources(workers={"min": 2, "max": 4}, gpu=True), [GPU_NODE])


@pytest.mark.parametrize(
    ("batch_size", "most", "sizes"), [(16, 4, (1, 2, 4)), (16, 3, (1, 2)), (12, 4, (1, 2, 3, 4)), (17, 4, (1,))]
)
def test_numbers_of_workers_divide_the_batch_size(batch_size, most, sizes):
    experiment = validate(Experiment, {"train": {"batch_size": batch_size}}, "test")
    resources = Resources(workers={"min": 1, "max": 4})
    assert PRETRAINING.numbers_of_workers(experiment, resources, most) == sizes


def test_numbers_of_workers_refuses_a_batch_that_none_divides():
    experiment = validate(Experiment, {"train": {"batch_size": 15}}, "test")
    with pytest.raises(ConfigError, match=r"found \{min: 2, max: 4\}, of which 2 fit, but no .* batch of 15"):
        PRETRAINING.numbers_of_workers(experiment, Resources(workers={"min": 2, "max": 4}), 2)
