"""The node of a process under a plain ASGI server: made once, by the first that needs it."""

import asyncio

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError

from federation import runtime
from federation.runtime import NodeUnavailableError, running_node, set_node
from keys.folder import KeyFileError

pytestmark = pytest.mark.asyncio


class StartingNode:
    def __init__(self, fault=None):
        self.started, self.fault = 0, fault

    async def start(self):
        self.started += 1
        await asyncio.sleep(0.01)
        if self.fault:
            raise self.fault


@pytest.fixture(autouse=True)
def nobody():
    set_node(None)
    yield
    set_node(None)


async def test_one_node_however_many_ask(monkeypatch):
    """Connections that come at once meet one node; one that leaves meanwhile takes it from nobody."""
    made = []
    monkeypatch.setattr(runtime, "load_node", lambda: made.append(StartingNode()) or made[-1])
    asking = [asyncio.ensure_future(running_node()) for _ in range(5)]
    await asyncio.sleep(0)
    asking.pop(0).cancel()
    nodes = await asyncio.gather(*asking)
    assert len(made) == 1
    assert made[0].started == 1
    assert all(node is made[0] for node in nodes)
    assert await running_node() is made[0]


@pytest.mark.parametrize("fault", [OperationalError("no such table"), KeyFileError("no key"), ImproperlyConfigured("ARK_…")])
async def test_failure_is_said_once_and_tried_again_later(monkeypatch, caplog, fault):
    """Without a usable node everybody is refused; strangers cause neither a try nor a line in the log each."""
    made = []
    monkeypatch.setattr(runtime, "load_node", lambda: made.append(StartingNode(fault)) or made[-1])
    outcomes = await asyncio.gather(*(running_node() for _ in range(5)), return_exceptions=True)
    assert all(isinstance(outcome, NodeUnavailableError) for outcome in outcomes)
    for _ in range(5):
        with pytest.raises(NodeUnavailableError):
            await running_node()
    assert len(made) == 1
    assert len([record for record in caplog.records if record.name == "federation.runtime"]) == 1
    monkeypatch.setattr(runtime, "RETRY_S", 0.0)
    fine = StartingNode()
    monkeypatch.setattr(runtime, "load_node", lambda: fine)
    assert await running_node() is fine
