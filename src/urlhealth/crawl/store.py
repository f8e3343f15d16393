"""The durable store of everything that the crawl knows, over SQLite or PostgreSQL."""

from urlhealth.crawl.bulk import Bulk
from urlhealth.crawl.erasing import Erasing
from urlhealth.crawl.history import History
from urlhealth.crawl.monitors import MonitorStore
from urlhealth.crawl.newest import NewestProbes
from urlhealth.crawl.pools import PoolReading
from urlhealth.crawl.reading import Reading
from urlhealth.crawl.retention import Retention
from urlhealth.crawl.schedule import Schedule
from urlhealth.crawl.tasks import TaskStore
from urlhealth.crawl.work import WorkStore


class CrawlStore(
    TaskStore, History, Reading, NewestProbes, Erasing, Retention, Bulk, MonitorStore, PoolReading, Schedule, WorkStore
):
    """Tasks, targets with their history, monitors, and the runner's work.

    Usable from any thread, and from any number of processes on one database. Every change is on disk when its method
    returns.
    """
