"""Benchmark the service against bare uvicorn."""
