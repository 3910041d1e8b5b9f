#!/bin/bash
# PostgreSQL's image runs this once, when its data folder is empty. It creates two databases, each with a role that can
# connect only to that database and may only create tables in it.
set -euo pipefail
psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username="${POSTGRES_USER:-postgres}" --dbname=postgres <<'SQL'
\getenv iris_password IRIS_DATABASE_PASSWORD
\getenv mlflow_password MLFLOW_DATABASE_PASSWORD
REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC;
CREATE ROLE iris LOGIN PASSWORD :'iris_password';
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password';
CREATE DATABASE iris;
CREATE DATABASE mlflow;
REVOKE ALL ON DATABASE iris, mlflow FROM PUBLIC;
GRANT CONNECT ON DATABASE iris TO iris;
GRANT CONNECT ON DATABASE mlflow TO mlflow;
\connect iris
GRANT USAGE, CREATE ON SCHEMA public TO iris;
\connect mlflow
GRANT USAGE, CREATE ON SCHEMA public TO mlflow;
SQL
