"""Who am I: torchrun, SLURM, alone; malformed variables are named."""

import pytest

from clipkit.dist.env import RankEnv, first_host, read_env
from clipkit.errors import ConfigError


def test_alone():
    assert read_env({}) == RankEnv(0, 1, 0, 1, "127.0.0.1", 0, "single")
    assert read_env({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}).source == "single"


def test_torchrun():
    env = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    env |= {"MASTER_ADDR": "h", "MASTER_PORT": "1234", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}
    assert read_env(env) == RankEnv(5, 8, 1, 4, "h", 1234, "torchrun")


def test_slurm():
    env = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
    env |= {"SLURM_TASKS_PER_NODE": "4(x2)", "SLURM_JOB_ID": "123456"}
    env |= {"SLURM_JOB_NODELIST": "gpu[003-007,9],cpu1"}
    assert read_env(env) == RankEnv(5, 8, 1, 4, "gpu003", 20000 + 123456 % 20000, "slurm")
    assert read_env({**env, "MASTER_ADDR": "m", "MASTER_PORT": "7"}).master_addr == "m"
    ranks = [read_env({**env, "SLURM_PROCID": str(r)}) for r in range(8)]
    assert len({(r.master_addr, r.master_port) for r in ranks}) == 1


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[003-007,9],cpu1", "gpu003"),
        ("gpu[9,003-007]", "gpu9"),
        ("a[1,3]b", "a1b"),
        ("a[1-3]b,c", "a1b"),
        ("rack[2-3]node[05-07]", "rack2node05"),
        ("a-b-[12]", "a-b-12"),
        ("n1.cluster.org", "n1.cluster.org"),
        (" node7 ", "node7"),
    ],
)
def test_first_host(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize("nodes", ["", "[1-2]", ","])
def test_no_node_list(nodes):
    with pytest.raises(ConfigError, match="export MASTER_ADDR"):
        first_host(nodes)


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "RANK": "x"}, "RANK"),
        ({"WORLD_SIZE": "2", "MASTER_PORT": "http"}, "MASTER_PORT"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "?"}, "SLURM_NTASKS"),
        ({"SLURM_PROCID": "a", "SLURM_NTASKS": "2"}, "SLURM_PROCID"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "rank 2 of world size 2"),
        ({"WORLD_SIZE": "0"}, "world size 0"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "rank -1"),
    ],
)
def test_malformed_values_are_named(env, named):
    with pytest.raises(ConfigError, match=named):
        read_env(env)
