"""schemathesis over /openapi.json for longer: `make test-openapi`."""

from openapi_run import schemathesis

LIMITS = ("--max-model-len", "256", "--max-num-seqs", "4")


def test_openapi_every_phase(serve, tmp_path):
    server = serve(*LIMITS, "--session-dir", str(tmp_path / "sessions"))
    cases = schemathesis(server.port, "examples,coverage,fuzzing,stateful", 60, tmp_path, limit_s=1800)
    print(f"{cases} cases")
    assert cases > 10_000


def test_openapi_with_keys(serve, tmp_path):
    """The same where keys are needed: every endpoint that says so refuses to answer without one, and no
    tenant sees what is another's."""
    keys = {"boss": "sesame", "guest": "mellon"}
    flags = [flag for key in keys.items() for flag in ("--api-key", ":".join(key))]
    server = serve(*LIMITS, *flags, "--admin-tenant", "boss")
    cases = schemathesis(
        server.port, "examples,coverage,fuzzing,stateful", 20, tmp_path, keys=keys, limit_s=1200
    )
    print(f"{cases} cases")
    assert cases > 10_000
