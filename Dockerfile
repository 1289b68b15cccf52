# syntax=docker/dockerfile:1
# Two images of the same parts:
#   docker build --target cpu  --build-arg TORCH_INDEX=<index of torch's CPU wheels>  -t batchllm:cpu .
#   docker build --target cuda --build-arg TORCH_INDEX=<index of torch's CUDA wheels> -t batchllm:cuda .
# Without TORCH_INDEX pip takes what its own index has: a CUDA build, which runs on a CPU too but is large.
FROM python:3.12-slim-bookworm AS source
WORKDIR /src
RUN python -m venv /opt/batchllm
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY engine engine
COPY kernels kernels
COPY migrations migrations

FROM source AS build-cpu
ARG TORCH_INDEX
RUN /opt/batchllm/bin/pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} .

FROM source AS build-cuda
ARG TORCH_INDEX
RUN /opt/batchllm/bin/pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} '.[gpu]'

FROM python:3.12-slim-bookworm AS runtime
# Attention on a CPU is compiled for the processor it runs on; Triton compiles its launchers.
# The base image's Debian decides the versions.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && mkdir /data \
    && chown 10001:10001 /data
# All that is written goes to /data and /tmp, so that the root can be read-only.
ENV PATH=/opt/batchllm/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/data \
    HF_HOME=/data/cache/huggingface \
    TRITON_CACHE_DIR=/data/cache/triton \
    BATCHLLM_DATA_DIR=/data \
    BATCHLLM_CACHE_DIR=/data/cache \
    BATCHLLM_HOST=0.0.0.0 \
    BATCHLLM_OPS_HOST=0.0.0.0 \
    BATCHLLM_ALLOW_REMOTE=true \
    BATCHLLM_LOG_FORMAT=json
USER 10001:10001
VOLUME /data
EXPOSE 8000 8001
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8001/healthz', timeout=2)"]
ENTRYPOINT ["batchllm"]
CMD ["serve"]

FROM runtime AS cuda
COPY --from=build-cuda /opt/batchllm /opt/batchllm
ENV BATCHLLM_DEVICE=cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM runtime AS cpu
COPY --from=build-cpu /opt/batchllm /opt/batchllm
