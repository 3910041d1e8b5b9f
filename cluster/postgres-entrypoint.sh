#!/bin/sh
# What the official image of PostgreSQL does with POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_DB and PGDATA: an empty
# folder becomes a cluster with that user and database, reachable by password; then the server takes this one's place.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  mkdir -p "$PGDATA"
  printf '%s' "$POSTGRES_PASSWORD" > /tmp/password
  initdb --username="$POSTGRES_USER" --pwfile=/tmp/password --auth-host=scram-sha-256 --auth-local=trust
  rm /tmp/password
  echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
  if [ "$POSTGRES_DB" != postgres ]; then
    echo "CREATE DATABASE \"$POSTGRES_DB\"" | postgres --single postgres
  fi
fi
exec postgres -c listen_addresses='*'
