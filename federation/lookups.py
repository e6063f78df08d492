"""A lookup for "this JSON array holds this string", the same on SQLite and PostgreSQL."""

from typing import Any

from django.db.models import Lookup


class JSONHasElement(Lookup):  # type: ignore[type-arg]
    """`tags__has_element="x"`: the array in the column has the string as one of its elements."""

    lookup_name = "has_element"
    prepare_rhs = False

    def get_prep_lookup(self) -> str:
        return str(self.rhs)

    def as_sqlite(self, compiler: Any, connection: Any) -> tuple[str, list[Any]]:
        # json_each raises on text that is no JSON; CASE evaluates it only for rows that hold JSON, so that one
        # damaged row matches nothing and the others are still found.
        column, parameters = self.process_lhs(compiler, connection)
        holds = f"EXISTS (SELECT 1 FROM json_each({column}) WHERE json_each.value = %s)"  # noqa: S608 - a column's own SQL
        return f"CASE WHEN json_valid({column}) THEN {holds} ELSE 0 END", [*parameters, *parameters, self.rhs]

    def as_postgresql(self, compiler: Any, connection: Any) -> tuple[str, list[Any]]:
        column, parameters = self.process_lhs(compiler, connection)
        return f"jsonb_exists({column}, %s)", [*parameters, self.rhs]
