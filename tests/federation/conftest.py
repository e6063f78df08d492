"""One database connection a thread, also for what tests call inside an event loop."""

import pytest
from django.db import connections


@pytest.fixture(autouse=True)
def connection_of_the_thread(monkeypatch):
    """Let tasks use the connection of their thread, as the threads of a node do.

    Django would open one for each task and never close it, which on PostgreSQL keeps the test's database in use.
    """
    monkeypatch.setattr(connections, "_connections", connections._connections._storage)
