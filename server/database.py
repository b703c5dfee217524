"""The queue's database: DBOS's tables, our two beside them, and every statement that reads DBOS's by hand.

DBOS alone holds a job's status. Its table names and columns are not promised to stay: requirements.txt pins the version
and tests/server/test_jobs.py walks through each statement here.
"""

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sqlalchemy as sa
from dbos import DBOS, DBOSClient
from dbos._serialization import DBOSPortableJSONSerializer
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from pipeline.errors import StudioError

APPLICATION = "video-as-prompt-studio"
APPLICATION_VERSION = "1"  # constant: DBOS would hash our source, and a change of code would strand running jobs

JOBS_QUEUE = "jobs"  # one at a time per worker
FINISHED_QUEUE = "finished"  # what follows a job's end, such as a webhook; never waits for a generation
RUN_WORKFLOW = "run_job"
FINISHED_WORKFLOW = "report_finished"
NEWS = "news"  # the event a running job rewrites at every step

# DBOS orders by priority first, smallest first, and knows creation only to the second on SQLite. So the priority is our
# own count of jobs: exact order, and two jobs change places by swapping theirs.
LOW_PRIORITY_OFFSET = 2**30

metadata = sa.MetaData()

jobs = sa.Table(
    "studio_jobs",
    metadata,
    sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("job_id", sa.Text, nullable=False, unique=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("request", sa.Text),  # JSON; none: what came was no request
    sa.Column("webhook_url", sa.Text),
    sa.Column("report_due", sa.Boolean, nullable=False),  # someone waits to hear of the end and has not been told
    sa.Column("start_by_ms", sa.BigInteger),  # ends unless begun by then
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("verdict", sa.Text),  # JSON of an Outcome, for a job that ended without a run
    sa.UniqueConstraint("owner", "idempotency_key"),
    sa.Index("studio_jobs_of_owner", "owner", "number"),
    sa.Index(
        "studio_jobs_report_due", "number", sqlite_where=sa.text("report_due"), postgresql_where=sa.text("report_due")
    ),
)

workers = sa.Table(
    "studio_workers",
    metadata,
    sa.Column("executor_id", sa.Text, primary_key=True),
    sa.Column("beat", sa.BigInteger, nullable=False),  # counts up while the worker lives
)

# Literals, not parameters: SQLite uses DBOS's partial index only when it can see the status.
WAITING: sa.ColumnElement[str] = sa.literal_column("'ENQUEUED'")
RUNNING: sa.ColumnElement[str] = sa.literal_column("'PENDING'")
CANCELLED: sa.ColumnElement[str] = sa.literal_column("'CANCELLED'")
UNFINISHED = ("ENQUEUED", "DELAYED", "PENDING")

CONNECT_TIMEOUT_S = 5  # without it a page would wait for minutes on a machine that is switched off

_LOCK_ID = 7_210_451  # any constant: submits and set-up take turns on PostgreSQL as they do on SQLite


class UnreachableError(StudioError):
    """The database cannot be reached or written just now."""

    def __init__(self) -> None:
        message = "The queue’s database cannot be reached or written at the moment; please try again shortly."
        super().__init__(f"{message} If this lasts, tell whoever runs the studio.")


@contextmanager
def told_plainly() -> Iterator[None]:
    """Turn the error of a database that is away, or has no room, into one for a person."""
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeoutError) as error:
        raise UnreachableError from error


@dataclass(frozen=True)
class JobDatabase:
    """An open database. `client` enqueues and cancels; `engine` sees both DBOS's tables and ours."""

    url: str
    client: DBOSClient

    @property
    def system(self) -> Any:
        """Give DBOS's own access, whose methods are private to it."""
        return self.client._sys_db

    @property
    def engine(self) -> sa.Engine:
        """Give the engine that DBOS made, which knows in which schema its tables lie."""
        return self.system.engine

    @cached_property
    def _reader(self) -> sa.Engine:
        # PostgreSQL answers a single read without BEGIN and ROLLBACK, each a round trip; pysqlite opens none for it.
        on_postgres = self.engine.dialect.name == "postgresql"
        return self.engine.execution_options(isolation_level="AUTOCOMMIT") if on_postgres else self.engine

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Give a connection for single reads. Raises UnreachableError, as `write`."""
        with told_plainly(), self._reader.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Give a transaction: all of it is written, or nothing."""
        with told_plainly(), self.engine.begin() as connection:
            yield connection

    @property
    def workflows(self) -> sa.Table:
        """Give DBOS's table of workflows; a job is the workflow with its id."""
        return self.system.tables.workflow_status

    @cached_property
    def all_jobs(self) -> sa.Select[Any]:
        """Give the statement that selects jobs with all a Job is made from. Built once: it is slow to build."""
        return _select_jobs(self)

    @cached_property
    def one_job(self) -> sa.Select[Any]:
        """Give the same for the job whose id is the parameter `job_id`."""
        return self.all_jobs.where(jobs.c.job_id == sa.bindparam("job_id"))

    def close(self) -> None:
        """Give the connections back."""
        self.client.destroy()


def open_database(url: str) -> JobDatabase:
    """Open a database and create what is missing in it.

    Raises StudioError with a sentence when it cannot be reached.
    """
    hush_dbos()
    try:
        if url.startswith("sqlite"):
            _set_write_ahead_log(url)
        else:
            url = _limit_connecting(url)
        DBOS.migrate(url)
        client = DBOSClient(
            system_database_url=url,
            serializer=DBOSPortableJSONSerializer(),  # the default is pickle: who writes the database could run code
            application_name=APPLICATION,
            retry_connection_errors=False,
        )
        database = JobDatabase(url, client)
        with database.engine.begin() as connection:
            take_turn(connection)
            metadata.create_all(connection)
    except (SQLAlchemyError, sqlite3.Error) as error:
        place = sa.make_url(url).render_as_string(hide_password=True)
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise StudioError(f"The database {place} cannot be used ({reason}); check --database-url.") from error
    return database


def take_turn(connection: sa.Connection) -> None:
    """Wait until no other transaction that takes its turn is open. SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK_ID)))
    else:
        connection.execute(sa.text("BEGIN IMMEDIATE"))


def _select_jobs(database: JobDatabase) -> sa.Select[Any]:
    tables, flow = database.system.tables, database.workflows
    ahead = flow.alias("ahead")
    requests_ahead = (
        sa.select(sa.func.count()).where(*_waits(ahead), ahead.c.priority < flow.c.priority).scalar_subquery()
    )
    columns = (
        jobs,
        flow.c.status,
        flow.c.completed_at,
        flow.c.recovery_attempts,
        tables.workflow_output.c.output,
        tables.workflow_events.c.value,
    )
    news_of_job = sa.and_(tables.workflow_events.c.workflow_uuid == jobs.c.job_id, tables.workflow_events.c.key == NEWS)
    return sa.select(*columns, sa.case((flow.c.status == WAITING, requests_ahead)).label("position")).select_from(
        jobs.outerjoin(flow, flow.c.workflow_uuid == jobs.c.job_id)
        .outerjoin(tables.workflow_output, tables.workflow_output.c.workflow_uuid == jobs.c.job_id)
        .outerjoin(tables.workflow_events, news_of_job)
    )


def count_jobs(connection: sa.Connection, database: JobDatabase, owner: str) -> tuple[int, int]:
    """Give how many jobs of an owner have not ended, and how many of everybody's wait."""
    flow = database.workflows
    active = (
        sa.select(sa.func.count())
        .select_from(jobs.join(flow, flow.c.workflow_uuid == jobs.c.job_id))
        .where(jobs.c.owner == owner, flow.c.status.in_(UNFINISHED))
    )
    waiting = sa.select(sa.func.count()).where(*_waits(flow))
    row = connection.execute(sa.select(active.scalar_subquery(), waiting.scalar_subquery())).one()
    return row[0], row[1]


def _waits(workflows: sa.FromClause) -> tuple[sa.ColumnElement[bool], ...]:
    """Give the conditions that a job waits. The last says no more than the second, but in the words of DBOS's index."""
    status = workflows.c.status
    return workflows.c.queue_name == JOBS_QUEUE, status == WAITING, status.in_([WAITING, RUNNING])


def is_untouched(database: JobDatabase) -> sa.ColumnElement[bool]:
    """Give the condition that a workflow waits and no worker ever took it: taking counts an attempt."""
    flow = database.workflows
    return sa.and_(flow.c.status == WAITING, flow.c.recovery_attempts == 0)


def end_unless_begun(connection: sa.Connection, database: JobDatabase, job_id: str, verdict: str, now_ms: int) -> bool:
    """End a job that no worker has taken yet with a verdict of ours. Says whether it was so."""
    flow = database.workflows
    ended = connection.execute(
        sa.update(flow)
        .where(flow.c.workflow_uuid == job_id, is_untouched(database))
        .values(status=CANCELLED, queue_name=None, updated_at=now_ms, completed_at=now_ms)
    )
    if ended.rowcount:
        connection.execute(sa.update(jobs).where(jobs.c.job_id == job_id).values(verdict=verdict))
    return bool(ended.rowcount)


def waiting_places(connection: sa.Connection, database: JobDatabase, owner: str) -> list[tuple[str, int]]:
    """Give (job_id, priority) of an owner's jobs that no worker has taken yet, in the order they will run."""
    flow = database.workflows
    places = (
        sa.select(jobs.c.job_id, flow.c.priority)
        .join(flow, flow.c.workflow_uuid == jobs.c.job_id)
        .where(jobs.c.owner == owner, is_untouched(database))
        .order_by(flow.c.priority)
        .with_for_update()
    )
    return [(row.job_id, row.priority) for row in connection.execute(places)]


def set_place(connection: sa.Connection, database: JobDatabase, job_id: str, priority: int) -> None:
    """Give a waiting job another place in the order."""
    flow = database.workflows
    connection.execute(
        sa.update(flow).where(flow.c.workflow_uuid == job_id, flow.c.status == WAITING).values(priority=priority)
    )


def running_of(connection: sa.Connection, database: JobDatabase, executor_id: str) -> dict[str, str]:
    """Give the workflows that a worker has taken and not ended, and the queue of each."""
    flow = database.workflows
    taken = sa.select(flow.c.workflow_uuid, flow.c.queue_name).where(
        flow.c.status == RUNNING, flow.c.executor_id == executor_id
    )
    return {row.workflow_uuid: row.queue_name for row in connection.execute(taken)}


def forgive_attempt(connection: sa.Connection, database: JobDatabase, workflow_id: str) -> None:
    """Do not count the last run of a workflow against it: it was handed back, it killed nobody."""
    flow = database.workflows
    connection.execute(
        sa.update(flow)
        .where(flow.c.workflow_uuid == workflow_id, flow.c.recovery_attempts > 1)
        .values(recovery_attempts=flow.c.recovery_attempts - 1)
    )


def _limit_connecting(url: str) -> str:
    """Give a PostgreSQL address that says how long to try to connect; one that says so itself stays as it is."""
    address = sa.make_url(url)
    limited = address.update_query_dict({"connect_timeout": str(CONNECT_TIMEOUT_S), **address.query})
    return limited.render_as_string(hide_password=False)


def _set_write_ahead_log(url: str) -> None:
    """Let readers and a writer work at once. The setting stays in the file; DBOS does not set it."""
    with sqlite3.connect(str(sa.make_url(url).database), timeout=30) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    connection.close()


class _CancelFilter(logging.Filter):
    """Drops what DBOS logs when a job was cancelled or taken over: a traceback each time, and nothing is wrong."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        told = type(error).__name__ in {"DBOSAwaitedWorkflowCancelledError", "DBOSWorkflowCancelledError"}
        return not (told or str(record.msg).endswith("recorded outcome"))


def hush_dbos() -> None:
    """Let DBOS's warnings go where the program's own log goes, and nothing below a warning go anywhere."""
    logger = logging.getLogger("dbos")
    if any(isinstance(known, _CancelFilter) for known in logger.filters):
        return
    logger.addHandler(logging.NullHandler())  # it adds a console of its own only where there is no handler
    logger.setLevel(logging.WARNING)
    logger.addFilter(_CancelFilter())
