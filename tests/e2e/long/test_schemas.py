"""500 random JSON schemas, the real model at temperature 1: every answer that ends is JSON of its schema."""

import random

from conftest import real_model
from constrained import check_schemas
from random_schemas import recursive

SEED = 2026
COUNT = 500


def test_answers_of_500_random_schemas_validate(serve):
    # hypothesis-jsonschema goes with an older hypothesis than other tests': `make test-schemas` has both.
    from drawn_schemas import drawn_schemas

    schemas = drawn_schemas(COUNT, SEED)
    assert len(schemas) >= COUNT
    rng = random.Random(SEED)
    schemas += [recursive(rng) for _ in range(COUNT // 10)]
    server = serve("--kv-bytes", "1GiB", model=real_model())
    ends = check_schemas(server, schemas, max_tokens=1000)
    print(f"ended by themselves: {ends['stop']}, cut off: {ends['length']}")
    assert ends["stop"] + ends["length"] == len(schemas)
    assert ends["stop"] >= 0.96 * len(schemas), ends
