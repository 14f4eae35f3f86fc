"""schemathesis over /openapi.json for longer: `make test-openapi`."""

from openapi_run import schemathesis

LIMITS = ("--max-model-len", "128", "--max-num-seqs", "4")


def test_openapi_every_phase(serve, tmp_path):
    server = serve(*LIMITS, "--session-dir", str(tmp_path))
    cases = schemathesis(server.port, "coverage,fuzzing,stateful", 150, limit_s=1200)
    print(f"{cases} cases")
    assert cases > 5000


def test_openapi_with_keys(serve):
    """The same where keys are needed: every endpoint that says so refuses to answer without one."""
    server = serve(*LIMITS, "--api-key", "boss:sesame", "--admin-tenant", "boss")
    assert schemathesis(server.port, "coverage,fuzzing", 20, key="sesame", limit_s=600) > 1000
