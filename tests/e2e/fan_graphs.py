"""LangGraph graphs that fan out to eight branches at once."""

import operator
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

BRANCHES = 8


class State(TypedDict):
    answers: Annotated[list[Any], operator.add]


def side_by_side(node) -> Any:
    """A graph of eight nodes that nothing orders; node(branch) makes the function of one."""
    graph = StateGraph(State)
    for branch in range(BRANCHES):
        graph.add_node(f"n{branch}", node(branch))
        graph.add_edge(START, f"n{branch}")
        graph.add_edge(f"n{branch}", END)
    return graph.compile()


def by_send(node) -> Any:
    """A graph of one node that is sent eight times, each with its `branch`."""
    graph = StateGraph(State)
    graph.add_node("work", node)
    sends = [Send("work", {"branch": branch}) for branch in range(BRANCHES)]
    graph.add_conditional_edges(START, lambda _: sends, ["work"])
    graph.add_edge("work", END)
    return graph.compile()
