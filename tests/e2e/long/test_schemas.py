"""500 random schemas on the real model at temperature 1: every answer that ends is JSON of its schema."""

from conftest import real_model
from constrained import check_schemas
from random_schemas import random_schemas


def test_answers_of_500_random_schemas_validate(serve):
    server = serve("--kv-bytes", "1GiB", model=real_model())
    ends = check_schemas(server, random_schemas(500, seed=2026), max_tokens=1000)
    print(f"ended by themselves: {ends['stop']}, cut off: {ends['length']}")
    assert ends["stop"] + ends["length"] == 500
    assert ends["stop"] >= 480, ends
