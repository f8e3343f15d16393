"""What a query may ask for, found out before anything of it is carried out."""

from collections.abc import Mapping
from typing import Any, Final

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
    value_from_ast_untyped,
)

from urlhealth.features.catalog import VECTOR
from urlhealth.prediction.predictor import REASONS

#: Fields within fields. What tools ask to learn the schema has 14.
MAX_DEPTH: Final = 15
#: Objects that a query may lead to, by the sizes that it asks for.
MAX_COST: Final = 20_000
#: Longest query, in words and signs.
MAX_TOKENS: Final = 2_000

#: Fields that are lists, and how many items are reckoned where the query says neither `first` nor which.
LISTS: Final = {
    "tasks": 20,
    "results": 100,
    "probes": 10,
    "targets": 100,
    "features": len(VECTOR),
    "predictions": 1,
    "reasons": REASONS,
}
#: Arguments that say how many items there are: a number, or lists with an item each.
_FIRST: Final = "first"
_NAMED: Final = frozenset({"urls", "names", "horizons"})


def check(document: DocumentNode, variables: Mapping[str, Any], operation_name: str | None) -> None:
    """Raises `GraphQLError` saying by how much a query is too deep or too costly, or that it is no query."""
    operations = [node for node in document.definitions if isinstance(node, OperationDefinitionNode)]
    if operation_name is None and len(operations) > 1:
        raise GraphQLError(f"there are {len(operations)} operations: say which with `operationName`", operations)
    for operation in operations:
        if operation_name is not None and (operation.name is None or operation.name.value != operation_name):
            continue
        if operation.operation.value != "query":
            raise GraphQLError(f"a {operation.operation.value} is not taken here: this is for reading", operation)
        defaults = {
            definition.variable.name.value: value_from_ast_untyped(definition.default_value)
            for definition in operation.variable_definitions or ()
            if definition.default_value is not None
        }
        depth, cost = _Reckoning(document, defaults | dict(variables)).of(operation.selection_set)
        if depth > MAX_DEPTH:
            raise GraphQLError(f"the query is {depth} fields deep: {MAX_DEPTH} is the most", operation)
        if cost > MAX_COST:
            raise GraphQLError(
                f"the query may lead to {cost:,} objects, and {MAX_COST:,} is the most: ask for fewer with `first`",
                operation,
            )


class _Reckoning:
    def __init__(self, document: DocumentNode, variables: Mapping[str, Any]) -> None:
        self._variables = variables
        self._fragments = {
            node.name.value: node for node in document.definitions if isinstance(node, FragmentDefinitionNode)
        }
        #: Depth and cost of each fragment, reckoned once; None while that is being done.
        self._known: dict[str, tuple[int, int] | None] = {}

    def of(self, selections: SelectionSetNode | None) -> tuple[int, int]:
        """Depth and cost of what is selected."""
        if selections is None:
            return 0, 0
        depth = cost = 0
        for node in selections.selections:
            match node:
                case FieldNode():
                    below, each = self.of(node.selection_set)
                    found = below + 1, 0 if node.selection_set is None else self._size(node) * (1 + each)
                case FragmentSpreadNode():
                    found = self._fragment(node)
                case InlineFragmentNode():
                    found = self.of(node.selection_set)
                case _:
                    continue
            depth, cost = max(depth, found[0]), cost + found[1]
        return depth, cost

    def _fragment(self, spread: FragmentSpreadNode) -> tuple[int, int]:
        name = spread.name.value
        if name not in self._fragments:
            return 0, 0  # Validation says that there is none.
        if name not in self._known:
            self._known[name] = None
            self._known[name] = self.of(self._fragments[name].selection_set)
        known = self._known[name]
        if known is None:
            raise GraphQLError(f"the fragment {name} has itself in it", spread)
        return known

    def _size(self, field: FieldNode) -> int:
        """What is of another type than it must be counts as if it were not said: the query is refused for it later."""
        for argument in field.arguments or ():
            value = value_from_ast_untyped(argument.value, dict(self._variables))
            if argument.name.value == _FIRST and isinstance(value, int):
                return max(value, 1)
            if argument.name.value in _NAMED and isinstance(value, list):
                return max(len(value), 1)
        return LISTS.get(field.name.value, 1)
