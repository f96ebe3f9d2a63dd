"""Worker sizes: they fit the host, their parts fit the worker, and nonsense is refused in one line."""

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from muster.errors import MusterError
from muster.sizing import MIB, count, parse_memory, ray_workers

GIB = 1024 * MIB
# A worker's own processes, measured, before a job runs.
IDLE = 384 * MIB
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "cpus": st.integers(0, 16),
        "memory": st.sampled_from(["1G", "2500M", "6G", 8 * GIB]),
        "gpus": st.integers(0, 2),
    },
)
SPEC = st.one_of(st.none(), st.integers(0, 20), st.integers(0, 20).map(str), st.lists(ENTRY, max_size=8))


@given(
    spec=SPEC,
    host_cpus=st.integers(1, 128),
    host_memory_mb=st.integers(500, 1_000_000),
    cpus=st.one_of(st.none(), st.integers(0, 8)),
    memory=st.one_of(st.none(), st.sampled_from(["", "1G", "6G"])),
    reserve_cpus=st.integers(0, 4),
    reserve_memory=st.sampled_from(["0", "1G", ["1G", "2G"]]),
)
def test_workers_fit_the_host_and_parts_fit_the_worker(
    spec: Any, host_cpus: int, host_memory_mb: int, **given: Any
) -> None:
    try:
        workers = ray_workers(spec, host="a", host_cpus=host_cpus, host_memory_mb=host_memory_mb, **given)
    except MusterError as error:
        assert str(error).startswith("a: ") and " Fix: " in str(error)
        return
    assert len(workers) == count(spec)
    assert sum(worker["cpus"] for worker in workers) <= host_cpus
    assert sum(worker["memory"] for worker in workers) <= host_memory_mb * MIB
    for worker in workers:
        assert min(worker["cpus"], worker["object_store"], worker["heap"], worker["gpus"]) >= 0
        assert worker["memory"] > 0 and worker["heap"] > 0
        assert worker["object_store"] + worker["heap"] + IDLE <= worker["memory"]
        assert worker["object_store"] < worker["shm"] < worker["memory"]
    gpus = [gpu for worker in workers for gpu in worker["gpu_ids"]]
    assert gpus == list(range(sum(worker["gpus"] for worker in workers)))


@given(st.integers(1, 64), st.integers(4096, 500_000))
def test_without_a_word_one_worker_takes_the_host_less_the_reserve(cpus: int, memory_mb: int) -> None:
    (worker,) = ray_workers(None, host_cpus=cpus, host_memory_mb=memory_mb, reserve_cpus=1, reserve_memory="1G")
    assert worker["cpus"] == max(cpus - 1, 1)
    assert worker["memory"] == (memory_mb - 1024) * MIB


@given(st.integers(1, 8), st.integers(0, 10))
def test_equal_workers_are_equal(workers: int, spare: int) -> None:
    found = ray_workers(workers, host_cpus=workers + spare, host_memory_mb=100_000)
    assert len({(worker["cpus"], worker["memory"]) for worker in found}) == 1


def test_what_the_inventory_says_is_what_there_is() -> None:
    found = ray_workers(
        "3", host_cpus=16, host_memory_mb=64_000, cpus="3", memory="8G", gpus=1, labels={"class": "server"}
    )
    assert [(w["name"], w["cpus"], w["memory"], w["gpu_ids"]) for w in found] == [
        ("worker-1", 3, 8 * GIB, [0]),
        ("worker-2", 3, 8 * GIB, [1]),
        ("worker-3", 3, 8 * GIB, [2]),
    ]
    assert found[0]["labels"] == {"class": "server"}


def test_mixed_sizes_share_what_is_left() -> None:
    spec = [{"cpus": 4, "memory": "8G", "labels": {"disk": "ssd"}, "resources": {"big": 1}}, {}]
    first, second = ray_workers(spec, host_cpus=8, host_memory_mb=20 * 1024, reserve_cpus=2, reserve_memory="2G")
    assert (first["cpus"], first["memory"]) == (4, 8 * GIB)
    assert (second["cpus"], second["memory"]) == (2, 10 * GIB)
    assert (first["labels"], first["resources"], second["labels"]) == ({"disk": "ssd"}, {"big": 1}, {})


@pytest.mark.parametrize(
    ("spec", "given", "message"),
    [
        ("many", {}, "ray_workers is 'many', which is not a whole number"),
        (-1, {}, "ray_workers is -1"),
        (True, {}, "ray_workers is True"),
        ([{"cpu": 2}], {}, "entry 1 has the unknown key cpu"),
        (["2"], {}, "entry 1 is '2'"),
        (2, {"memory": "6"}, "less than 1 MiB"),
        (2, {"memory": "6X"}, "'6X', which is not a size"),
        (2, {"memory": "5G"}, "2 workers ask for 10.0G of memory, the host has 8.0G and keeps 0M"),
        (
            1,
            {"memory": "8G", "reserve_memory": "1G"},
            "1 worker asks for 8.0G of memory, the host has 8.0G and keeps 1.0G",
        ),
        (9, {}, "9 workers ask for 9 CPUs, the host has 4"),
        (2, {"cpus": 3}, "2 workers ask for 6 CPUs, the host has 4"),
        (1, {"memory": "512M"}, "needs 640M at least"),
        (2, {"gpus": 1, "host_gpus": 1}, "ask for 2 GPUs, the host has 1"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(spec: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(MusterError) as error:
        ray_workers(spec, host="server80", host_cpus=4, host_memory_mb=8 * 1024, **given)
    assert str(error.value).startswith("server80: ") and message in str(error.value) and "Fix: " in str(error.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("6G", 6 * GIB),
        ("6g", 6 * GIB),
        ("6GiB", 6 * GIB),
        ("1.5G", 1536 * MIB),
        ("512M", 512 * MIB),
        (7 * GIB, 7 * GIB),
    ],
)
def test_sizes_are_read_as_docker_reads_them(text: object, size: int) -> None:
    assert parse_memory(text) == size


@given(st.integers(1, 4), st.integers(1, 12))
def test_one_worker_more_changes_no_other_when_sizes_are_given(workers: int, cpus: int) -> None:
    assume(cpus * (workers + 1) <= 64)
    before = ray_workers(workers, host_cpus=64, host_memory_mb=64_000, cpus=cpus, memory="6G")
    after = ray_workers(workers + 1, host_cpus=64, host_memory_mb=64_000, cpus=cpus, memory="6G")
    assert after[:workers] == before
