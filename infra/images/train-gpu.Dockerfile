# Training and evaluation on NVIDIA GPUs: docker build -f infra/images/train-gpu.Dockerfile --build-arg CONTROL=moeline-control@sha256:... -t moeline-train-gpu:0.1.0 .
# The environment of the stages with MegaBlocks, compiled for its torch. The CUDA of the compiler must be torch's (CUDA 13.2 for torch 2.15); at run time
# CUDA's libraries are those of torch's wheels. ARCHITECTURE: 9.0 is H100 and H200.
ARG CONTROL=moeline-control:0.1.0
ARG CUDA=nvidia/cuda:13.2.0-devel-ubuntu22.04

FROM ${CUDA} AS cuda

FROM ${CONTROL} AS build
ARG SOURCE_DATE_EPOCH=0
ARG ARCHITECTURE=9.0
USER 0:0
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++=4:12.* ninja-build=1.11.* \
    && rm -rf /var/lib/apt/lists/*
COPY --from=cuda /usr/local/cuda/ /usr/local/cuda/
ENV CUDA_HOME=/usr/local/cuda SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH}
# Sources with pinned sha256 and edits that each have a reason (infra/gpu/build_megablocks.py).
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python infra/gpu/build_megablocks.py --out /wheels --architecture "${ARCHITECTURE}"
USER 10001:10001

FROM ${CONTROL}
USER 0:0
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    /usr/local/bin/python -m pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --no-index /wheels/*.whl
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
HEALTHCHECK NONE
CMD ["moeline", "--help"]
