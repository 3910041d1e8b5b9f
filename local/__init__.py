"""What a person needs to run the service on one machine: a real PostgreSQL, `run` and `bench`."""
