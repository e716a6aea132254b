# Airflow, MLflow, Ray's head and CPU workers, and the pods of stages: docker build -f infra/images/control.Dockerfile -t moeline-control:0.1.0 .
# Fill in the digest of the base when you build, so that the same name cannot mean another image tomorrow:
#   --build-arg BASE=python:3.11.15-slim-bookworm@sha256:... --build-arg REVISION=$(git rev-parse HEAD) --build-arg SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
# Your package index: --secret id=pip,src=pip.conf
ARG BASE=python:3.11.15-slim-bookworm

FROM ${BASE} AS build
ARG SOURCE_DATE_EPOCH=0
ENV SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH} PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/opt/moeline
WORKDIR /opt/moeline
COPY requirements.lock pyproject.toml ./
COPY infra/local/uv.lock infra/local/uv.lock
COPY infra/supply infra/supply
COPY infra/images/runtime_lock.py infra/images/runtime_lock.py
COPY jobs jobs
# packaging, pinned like everything else, reads the lock; then the environment is made of what runs, as infra/local/bootstrap.py makes it.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python -m venv /opt/tools \
    && sed -n '/^packaging==/,/^    # via/p' requirements.lock > /tmp/packaging.lock \
    && /opt/tools/bin/python -m pip install --no-cache-dir --require-hashes --only-binary :all: --requirement /tmp/packaging.lock \
    && /opt/tools/bin/python -m pip install --no-cache-dir --require-hashes --only-binary :all: --requirement infra/local/uv.lock \
    && /opt/tools/bin/python -m infra.images.runtime_lock > /tmp/runtime.lock \
    && UV_DEFAULT_INDEX="$(/opt/tools/bin/python -m pip config get global.index-url 2>/dev/null || true)" \
    && if [ -n "$UV_DEFAULT_INDEX" ]; then export UV_DEFAULT_INDEX; else unset UV_DEFAULT_INDEX; fi \
    && /opt/tools/bin/uv venv --python /usr/local/bin/python /opt/venv \
    && /opt/tools/bin/uv pip install --no-cache --no-deps --compile-bytecode --require-hashes --python /opt/venv/bin/python --requirement /tmp/runtime.lock

FROM ${BASE}
ARG REVISION=unknown
RUN groupadd --gid 10001 moeline && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin moeline
COPY --from=build /opt/venv /opt/venv
WORKDIR /opt/moeline
COPY pyproject.toml requirements.lock ./
COPY dags dags
COPY expectations expectations
COPY infra infra
COPY jobs jobs
COPY models models
# The `moeline` command, and the commit that jobs/run.py writes beside everything it commits.
RUN printf '#!/opt/venv/bin/python\nimport sys\n\nfrom jobs.cli import main\n\nsys.exit(main())\n' > /opt/venv/bin/moeline \
    && chmod 0755 /opt/venv/bin/moeline \
    && mkdir .git \
    && printf '%s\n' "${REVISION}" > .git/HEAD \
    && /opt/venv/bin/python -m compileall -q --invalidation-mode checked-hash dags expectations infra jobs models
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/moeline \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp
USER 10001:10001
# One image, many processes: which answer proves health is said by the probes of each pod (infra/cluster/templates).
HEALTHCHECK NONE
CMD ["moeline", "--help"]
