"""Where chat templates run: programs of people nobody knows. They reach nothing of Python, and end."""

from collections.abc import Iterable, Iterator
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_STEPS = 2_000_000  # in one rendering: a turn of a loop is one, a call CALL
CALL = 10
MOST_SIZE = 10_000_000  # characters or items of a value that is put together, and any number given to a call
STEPS = "the steps that are left"  # not a name that a template could assign to


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox (no attributes with underscores, nothing changed), where loops, calls and sizes have a bound too.

    Render with `limits()` beside the template's own variables."""

    intercepted_binops = frozenset({"+", "*", "**"})

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.filters |= {"counted": _counted, "concatenated": _concatenated}

    def bounded(self, source: str) -> jinja2.Template:
        """The template, its loops counted. Raises TemplateSyntaxError."""
        tree = self.parse(source)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None)
            loop.recursive = False  # what it would call itself with is not counted; calling it says so
        self._bound_texts(tree)
        tree.set_environment(self)
        return self.from_string(tree)

    def _bound_texts(self, node: nodes.Node) -> None:
        """`a ~ b` becomes `[a, b]|concatenated`."""
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


def limits() -> dict[str, Any]:
    """For one rendering."""
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
    left = context.parent[STEPS]
    left[0] -= cost
    if left[0] < 0:
        raise jinja2.TemplateError(f"does not end: it was stopped after {MOST_STEPS:,} steps")


@jinja2.pass_context
def _counted(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _step(context)
        yield item
