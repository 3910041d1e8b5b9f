"""The benchmark: the service against a bare uvicorn, in one run."""
