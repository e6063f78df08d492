"""Run the whole node in this process until Ctrl-C or SIGTERM."""

from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandParser
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from federation.conf import http_bind, limits, static_peers, sync_bind
from federation.lock import RunnerLock, RunnerLockError
from federation.node import FederationNode
from keys.command import ArkCommand, Exit, fail
from keys.encoding import grouped
from keys.folder import KeyFileError
from keys.services import load_identity


class Command(ArkCommand):
    help = "Run this node: sync port, admin, dialling and discovery in one process. Ctrl-C or SIGTERM ends it cleanly."
    failures = {RunnerLockError: Exit.FAILED, KeyFileError: Exit.FAILED, ImproperlyConfigured: Exit.USAGE}

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--no-serve", action="store_true", help="open no TCP ports; daphne serves them beside this process")
        parser.add_argument("--no-discovery", action="store_true", help="neither send nor hear beacons")
        parser.add_argument("--no-dial", action="store_true", help="dial nobody; answer those who dial us")

    def run(self, **options: Any) -> None:
        identity = load_identity()
        http_bind(), sync_bind(), limits(), static_peers()
        if MigrationExecutor(connection).migration_plan(MigrationExecutor(connection).loader.graph.leaf_nodes()):
            raise fail("the database is not migrated: run manage.py migrate")
        lock = RunnerLock()
        lock.acquire()
        # Twisted's reactor and Daphne are loaded only here: every other command starts faster without them.
        from federation.runner import FederationRunner, Parts
        from federation.server import PortTakenError

        parts = Parts(serve=not options["no_serve"], discover=not options["no_discovery"], dial=not options["no_dial"])
        node = FederationNode(identity)

        def started() -> None:
            self.say(f"ArkLattice node {settings.ARK_NODE_NAME} is running")
            self.say(f"  node id      {identity.node_id.hex()}")
            self.say(f"  fingerprint  {grouped(identity.pair.fingerprint)}")
            if parts.serve:
                self.say(f"  admin        http://{http_bind()}/admin/")
                self.say(f"  sync         ws://{sync_bind()}/sync")
            self.stdout.flush()

        try:
            FederationRunner(node, parts, started=started, note=lock.note).run()
        except PortTakenError as error:
            setting = "ARK_HTTP_BIND" if f":{http_bind().port}:" in str(error) else "ARK_SYNC_BIND"
            raise fail(f"cannot listen on {error}; change {setting}", Exit.PORT_TAKEN) from error
        finally:
            lock.release()
