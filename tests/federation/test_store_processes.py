"""Several processes write packets at once while one follows them by arrival number."""

import os
import subprocess
import sys
import textwrap

import pytest
from django.db import connection

from tests.harness import wait_for

WRITERS = 3
BATCHES = 12
ROWS_A_BATCH = 40

# Each writer publishes its batches one transaction at a time and lingers before each commit, so that a number
# taken early and committed late would be seen to be missing.
WRITER = """
    import time
    from django.db import transaction
    from federation import services
    from tests.federation.makers import make_received
    number = int(sys.argv[1])
    for batch in range({batches}):
        rows = [make_received(batch * {rows} + row, origin=number) for row in range({rows})]
        with transaction.atomic():
            assert set(services.store_packets(received=rows, quotas={{}})) == {{services.Code.ACCEPTED}}
            time.sleep(0.002 * (number + batch) % 0.01)
"""

# The follower only ever asks for what lies behind the last number it saw.
FOLLOWER = """
    import time
    from federation import selectors
    head, seen, deadline = 0, 0, time.monotonic() + 60
    while seen < {total} and time.monotonic() < deadline:
        rows = selectors.feed_after(head, 25)
        seen += len(rows)
        head = rows[-1].arrival if rows else head
        time.sleep(0 if rows else 0.001)
    print(seen, selectors.head_arrival() == head)
"""


@pytest.fixture
def environment(transactional_db, tmp_path):
    """Processes of one node: on SQLite a file of their own, on PostgreSQL the test's database."""
    environment = {**os.environ, "ARK_HOME": str(tmp_path), "DJANGO_SETTINGS_MODULE": "arklattice.settings"}
    if connection.vendor == "postgresql":
        given = connection.settings_dict
        # A host that begins with / is the folder of a socket, and stands in the path of the URL.
        socket = given["HOST"].startswith("/")
        place = f"/{given['HOST']}" if socket else f"{given['HOST']}:{given['PORT'] or 5432}"
        environment["DATABASE_URL"] = f"postgres://{given['USER']}:{given['PASSWORD']}@{place}/{given['NAME']}"
    else:
        subprocess.run([sys.executable, "manage.py", "migrate", "-v0"], env=environment, check=True)
    yield environment
    if connection.vendor == "postgresql":
        wait_for(nobody_else_is_connected, 10, "the server noticed that the processes ended")


def nobody_else_is_connected():
    """The server's side of a connection outlives the client's by a moment, and keeps the test's database from being dropped."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        return cursor.fetchone() == (1,)


def start(environment, script, *arguments):
    values = {"batches": BATCHES, "rows": ROWS_A_BATCH, "total": WRITERS * BATCHES * ROWS_A_BATCH}
    code = "import sys, django\ndjango.setup()\n" + textwrap.dedent(script.format(**values))
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env=environment, stdout=subprocess.PIPE, text=True)


def printed_by(process):
    """Wait for a process to end well and return the words it printed."""
    printed, _ = process.communicate(timeout=90)
    assert process.returncode == 0
    return printed.split()


def test_a_reader_that_follows_arrival_numbers_misses_nothing(environment):
    processes = [start(environment, FOLLOWER), *(start(environment, WRITER, number) for number in range(1, WRITERS + 1))]
    followed, *_ = [printed_by(process) for process in processes]
    assert followed == [str(WRITERS * BATCHES * ROWS_A_BATCH), "True"]


def test_the_same_packets_stored_by_several_processes_at_once_are_stored_once(environment):
    same = WRITER.replace("origin=number", "origin=1").replace("== {{services.Code.ACCEPTED}}", "<= {{'accepted', 'duplicate'}}")
    for process in [start(environment, same, number) for number in range(1, WRITERS + 1)]:
        printed_by(process)
    count = "from federation.models import *; print(KnowledgePacket.objects.count(), OriginUsage.objects.get().packets)"
    assert printed_by(start(environment, count)) == [str(BATCHES * ROWS_A_BATCH)] * 2
