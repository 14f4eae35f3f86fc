"""The forced calls of test_tools.py, a hundred of them."""

from test_tools import client, forced_calls, tool_server  # noqa: F401


def test_a_hundred_forced_calls(client):  # noqa: F811
    forced_calls(client, 100)
