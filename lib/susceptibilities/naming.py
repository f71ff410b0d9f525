"""Names of components: what they say, and their order.

``full`` (unrestricted), ``embed``, ``layer:head``, ``mlp:layer``, ``unembed``; what each of them
is, `components` says.
"""

from __future__ import annotations

# A head's name as a regular expression, for a filter on a table's column.
HEAD_PATTERN = r"^\d+:\d+$"


def head_of(component: str) -> tuple[int, int] | None:
    """(layer, head) of ``layer:head``; None for any other component."""
    layer, _, head = component.partition(":")
    return (int(layer), int(head)) if layer.isdigit() and head.isdigit() else None


def layer_of(component: str) -> int | None:
    """Layer of a head or an MLP; None for what is in no layer."""
    kind, _, number = component.partition(":")
    if kind == "mlp" and number.isdigit():
        return int(number)
    head = head_of(component)
    return None if head is None else head[0]


def component_order(component: str) -> tuple[int, int, int, int]:
    """Sort key: ``full``, then as in the model: ``embed``, each layer's heads by number and its
    MLP, ``unembed`` (the order of `components.component_names`).

    Raises:
        ValueError: it is no component's name.
    """
    ends = {"full": 0, "embed": 1, "unembed": 3}
    if component in ends:
        return ends[component], 0, 0, 0
    layer, head = layer_of(component), head_of(component)
    if layer is None:
        raise ValueError(
            f"no component's name: {component!r}; expected layer:head, mlp:layer, embed, unembed "
            "or full"
        )
    return (2, layer, 1, 0) if head is None else (2, layer, 0, head[1])
