# The serving image: service/ with its locked packages, and one model folder. Build arguments become labels.
# `python -m tools image` passes all of them. To build by hand, with either builder:
#   docker build --tag iris-classifier .
#   buildah bud --format docker --tag iris-classifier .     (the OCI format would drop the HEALTHCHECK)
# docker-compose.yml builds the target "service" and mounts the model as a volume.
#
# The base image has a tag instead of a digest because Docker Hub was not available during development. When you build
# from Docker Hub, pin its current digest with --build-arg BASE=python:3.13-slim@sha256:...
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
COPY service/requirements.txt /tmp/requirements.txt
# Both secrets are optional: a pip.conf for another index than pip's default, and the certificates that it refers to.
# Unlike build arguments, they do not appear in any layer or in the history.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=certificates \
    python -m venv --without-pip /opt/venv \
    && python -m pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --require-hashes \
       --only-binary :all: --requirement /tmp/requirements.txt \
    && python -m compileall -q -j 0 --invalidation-mode checked-hash \
       -x '/tests/|/onnxruntime/(quantization|tools|transformers)/' /opt/venv/lib
COPY service /app/service
# Make the files readable to every user, whatever the umask of the checkout. The byte code is validated by the hash of
# its source, because file times differ between builds.
RUN chmod -R u=rwX,go=rX /app \
    && python -m compileall -q --invalidation-mode checked-hash /app

FROM ${BASE} AS service
# The official image has no byte code of the standard library, and the root file system may be read-only: without
# this, every start would compile it again.
RUN python -m compileall -q -j 0 --invalidation-mode checked-hash -x '/(site-packages|test)/' \
       "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
    && install --directory --owner=10001 --group=10001 /var/lib/iris/journal
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    IRIS_HOST=0.0.0.0 \
    IRIS_PORT=8000 \
    IRIS_MODEL_DIR=/app/model \
    IRIS_JOURNAL_DIR=/var/lib/iris/journal
# The container runs with a read-only root file system and writes only to the journal's folder. That is deliberately
# not a VOLUME: a forgotten mount would go unnoticed, and each container would start with an empty journal.
# DATABASE_URL has no default.
WORKDIR /app
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-I", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['IRIS_PORT']), timeout=2); c.request('GET', '/readyz'); raise SystemExit(c.getresponse().status != 200)"]
CMD ["python", "-m", "service"]

FROM service
COPY --chmod=0444 model/model.json model/model.onnx /app/model/

# Last, so that a change of these rebuilds no other layer.
ARG BASE
ARG SOURCE=""
ARG REVISION=unknown
ARG VERSION=unknown
ARG MODEL_VERSION=unknown
ARG MODEL_SHA256=unknown
LABEL org.opencontainers.image.title="iris-classifier" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.base.name="${BASE}" \
      iris.model.version="${MODEL_VERSION}" \
      iris.model.sha256="${MODEL_SHA256}"
