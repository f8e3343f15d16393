"""Parts of a platform of several processes fail at a random moment of a task: nothing is lost, nothing is doubled.

`make faults` has three moments for each, and the faults that the suite leaves out. `docs/operations.md` has the record.
"""

from collections.abc import Callable

import pytest

from tests.brokers import broker_url
from tests.faults.conftest import EVERY_FAULT, Cluster, Proxy, RedisServer
from tests.support import BIN, environment, run

MakeCluster = Callable[[str], Cluster]
Between = Callable[[str], tuple[str, Proxy]]

more = pytest.mark.skipif(not EVERY_FAULT, reason="only by `make faults`")


@pytest.mark.parametrize("broker", ["redis", pytest.param("rabbitmq", marks=more)])
def test_kill_9_of_a_worker(make_cluster: MakeCluster, broker: str) -> None:
    cluster = make_cluster(broker_url(broker))
    cluster.start()
    task_id = cluster.submit()
    cluster.at_a_random_moment(task_id, lambda: cluster.workers[0].close())
    cluster.check_task(task_id)
    assert len(cluster.replicas[0][0].task(task_id)["workers"]) == 2


@pytest.mark.parametrize("broker", [pytest.param("redis", marks=more), "rabbitmq"])
def test_kill_9_of_the_lease_holder(make_cluster: MakeCluster, broker: str) -> None:
    cluster = make_cluster(broker_url(broker))
    cluster.start(replicas=2)
    task_id = cluster.submit()
    cluster.at_a_random_moment(task_id, lambda: cluster.kill_replica(cluster.writer()))
    cluster.check_task(task_id)


@more
def test_kill_9_of_a_replica_that_does_not_hold_the_lease(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(broker_url("redis"))
    cluster.start(replicas=2)
    task_id = cluster.submit()
    cluster.at_a_random_moment(task_id, lambda: cluster.kill_replica(1 - cluster.writer()))
    cluster.check_task(task_id)


@pytest.mark.parametrize("broker", ["redis", pytest.param("rabbitmq", marks=more)])
def test_the_connection_to_the_broker_is_cut(between: Between, make_cluster: MakeCluster, broker: str) -> None:
    url, proxy = between(broker_url(broker))
    cluster = make_cluster(url)
    cluster.start()
    task_id = cluster.submit()
    cluster.at_a_random_moment(task_id, lambda: proxy.cut(2.0))
    cluster.check_task(task_id)


@more
@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_the_connection_to_the_broker_becomes_slow(between: Between, make_cluster: MakeCluster, broker: str) -> None:
    url, proxy = between(broker_url(broker))
    cluster = make_cluster(url)
    cluster.start()
    task_id = cluster.submit()
    cluster.at_a_random_moment(task_id, lambda: proxy.delay(0.02))
    cluster.check_task(task_id)


@more
def test_redis_is_restarted_and_has_forgotten_everything(own_redis: RedisServer, make_cluster: MakeCluster) -> None:
    cluster = make_cluster(own_redis.url)
    cluster.start()
    task_id = cluster.submit()
    cluster.at_a_random_moment(task_id, lambda: own_redis.restart(after_s=1.0))
    cluster.check_task(task_id)


@more
def test_state_equals_a_rebuild_after_the_lease_holder_was_killed(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(broker_url("redis"))
    cluster.start(replicas=2)
    task_id = cluster.submit()
    cluster.at_a_random_moment(task_id, lambda: cluster.kill_replica(cluster.writer()))
    cluster.check_task(task_id)
    states = "SELECT md5(string_agg(kind || key || encode(state, 'hex'), ',' ORDER BY kind, key)) FROM carried_states"
    env = environment(cluster.home, **cluster.settings)
    run(str(BIN / "urlhealth"), "features", "build", env=env)
    lived = cluster.query(states)
    run(str(BIN / "urlhealth"), "features", "rebuild", env=env)
    assert cluster.query(states) == lived
