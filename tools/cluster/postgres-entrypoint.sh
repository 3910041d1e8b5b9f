#!/bin/sh
# Do what the official image of PostgreSQL does with POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_DB, PGDATA and the
# scripts in /docker-entrypoint-initdb.d: if the data folder is empty, create a database cluster with that user,
# password and database, and run the scripts. Then replace this process by the server.
set -eu
: "${PGDATA:=/var/lib/postgresql/data}" "${POSTGRES_USER:=postgres}"
: "${POSTGRES_DB:=$POSTGRES_USER}"
export PGDATA POSTGRES_USER POSTGRES_DB
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  mkdir -p "$PGDATA"
  printf '%s' "$POSTGRES_PASSWORD" > /tmp/password
  initdb --username="$POSTGRES_USER" --pwfile=/tmp/password --auth-host=scram-sha-256 --auth-local=trust
  rm /tmp/password
  echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
  if [ "$POSTGRES_DB" != postgres ]; then
    echo "CREATE DATABASE \"$POSTGRES_DB\"" | postgres --single postgres
  fi
  if [ -d /docker-entrypoint-initdb.d ]; then
    pg_ctl start --wait --silent --options="-c listen_addresses=''"
    for script in /docker-entrypoint-initdb.d/*.sh; do "$script"; done
    pg_ctl stop --wait --silent
  fi
fi
exec postgres -c listen_addresses='*'
