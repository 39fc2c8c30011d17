"""Runs chat templates, which are programs of unknown people. They cannot reach Python, and they always end."""

from collections.abc import Iterable, Iterator
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_STEPS = 2_000_000  # the most steps of one rendering
CALL = 10  # how many steps a call counts; a turn of a loop counts one
MOST_SIZE = 10_000_000  # the most characters or items of a value, and the largest number given to a call
STEPS = "the steps that are left"  # not a name that a template could assign to


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which allows no attributes with underscores and no changes, with limits for steps and sizes.

    Templates must be rendered with `limits()` besides their own variables."""

    intercepted_binops = frozenset({"+", "*", "**"})

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.filters |= {"counted": _counted, "concatenated": _concatenated}

    def bounded(self, source: str) -> jinja2.Template:
        """Returns the template of this source, in which steps of loops count. Raises TemplateSyntaxError."""
        tree = self.parse(source)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None)
            loop.recursive = False  # its calls would not be counted; a template that makes them gets an error
        self._bound_texts(tree)
        tree.set_environment(self)
        return self.from_string(tree)

    def _bound_texts(self, node: nodes.Node) -> None:
        """Replaces `a ~ b` with `[a, b]|concatenated`, which checks the size."""
        for name, value in node.iter_fields():
            children = value if isinstance(value, list) else [value]
            new = [_concatenation(child) for child in children]
            setattr(node, name, new if isinstance(value, list) else new[0])
            for child in new:
                if isinstance(child, nodes.Node):
                    self._bound_texts(child)

    def call(self, context: Context, function: Any, *args: Any, **named: Any) -> Any:
        _step(context, CALL)
        for value in (*args, *named.values()):
            if isinstance(value, int) and abs(value) > MOST_SIZE:
                raise jinja2.TemplateError(f"calls with {value:,}; allowed: up to {MOST_SIZE:,}")
        return super().call(context, function, *args, **named)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            size = left.bit_length() * abs(right) if isinstance(left, int) and isinstance(right, int) else 0
        elif operator == "*":
            size = max((len(a) * b for a, b in ((left, right), (right, left)) if _grows(a, b)), default=0)
        else:
            size = sum(len(value) for value in (left, right) if isinstance(value, str | list | tuple))
        _check(size)
        return super().call_binop(context, operator, left, right)


def set_limits() -> dict[str, Any]:
    """Returns the variables that hold the limits of one rendering."""
    return {STEPS: [MOST_STEPS]}


def _grows(value: Any, times: Any) -> bool:
    return isinstance(value, str | list | tuple) and isinstance(times, int)


def _concatenation(node: Any) -> Any:
    if not isinstance(node, nodes.Concat):
        return node
    listed = nodes.List(node.nodes, lineno=node.lineno)
    return nodes.Filter(listed, "concatenated", [], [], None, None, lineno=node.lineno)


def _check(size: int) -> None:
    if size > MOST_SIZE:
        raise jinja2.TemplateError(f"makes a value of {size:,} characters or items; allowed: up to {MOST_SIZE:,}")


def _concatenated(values: list[Any]) -> str:
    texts = [str(value) for value in values]
    _check(sum(map(len, texts)))
    return "".join(texts)


def _step(context: Context, cost: int = 1) -> None:
    steps = context.parent[STEPS]
    steps[0] -= cost
    if steps[0] < 0:
        raise jinja2.TemplateError(f"does not end: it was stopped after {MOST_STEPS:,} steps")


@jinja2.pass_context
def _counted(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _step(context)
        yield item
