# CPU image. A CUDA image differs in the torch index only:
#   docker build --build-arg TORCH_INDEX=<index of torch's CUDA wheels> .
FROM python:3.12-slim AS build
ARG TORCH_INDEX
WORKDIR /src
RUN python -m venv /opt/batchllm
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY engine engine
COPY kernels kernels
COPY migrations migrations
RUN /opt/batchllm/bin/pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} .

FROM python:3.12-slim
# Attention on a CPU is compiled for the processor it runs on; Triton compiles its launchers.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/batchllm /opt/batchllm
ENV PATH=/opt/batchllm/bin:$PATH \
    BATCHLLM_DATA_DIR=/data \
    BATCHLLM_CACHE_DIR=/data/cache \
    BATCHLLM_HOST=0.0.0.0 \
    BATCHLLM_ALLOW_REMOTE=true
RUN mkdir /data && chown 10001:10001 /data
USER 10001:10001
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
ENTRYPOINT ["batchllm"]
CMD ["serve"]
