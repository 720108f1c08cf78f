# syntax=docker/dockerfile:1
# Two targets: `docker build --target cpu .` and `docker build --target cuda .`; see docs/operations.md.

FROM python:3.11-slim-bookworm AS build
# TORCH_INDEX: the package index of PyTorch's CPU builds, for the CPU image; empty brings the default build, with CUDA.
ARG TORCH="torch==2.13.0"
ARG TORCH_INDEX=""
WORKDIR /src
COPY pyproject.toml ./
COPY deploy/image/install.sh deploy/image/
RUN --mount=type=cache,target=/root/.cache/pip \
    TORCH="${TORCH}" TORCH_INDEX="${TORCH_INDEX}" deploy/image/install.sh dependencies /opt/decoding-server
COPY README.md LICENSE ./
COPY strategies/ strategies/
COPY models/ models/
COPY decoding_server/ decoding_server/
RUN deploy/image/install.sh package /opt/decoding-server

FROM python:3.11-slim-bookworm AS runtime
# gcc compiles the CPU kernels at the first start, for the processor that is there then. bubblewrap is used only where
# the container may make namespaces; without, untrusted programs run under Landlock.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /var/cache/decoding-server --shell /usr/sbin/nologin server \
    && install -d -o 10001 -g 10001 /var/cache/decoding-server
COPY --from=build /opt/decoding-server /opt/decoding-server
COPY deploy/image/healthcheck.py /opt/decoding-server/
ENV PATH="/opt/decoding-server/bin:${PATH}" \
    HOME=/var/cache/decoding-server \
    HF_HOME=/var/cache/decoding-server/huggingface \
    DECODING_SERVER_CACHE=/var/cache/decoding-server \
    DECODING_SERVER_HOST=0.0.0.0 \
    DECODING_SERVER_EXIT_WHEN_DEAD=true
USER 10001:10001
VOLUME ["/var/cache/decoding-server"]
EXPOSE 8000
STOPSIGNAL SIGTERM
# The start period covers the download of a model.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m --retries=3 \
    CMD ["/opt/decoding-server/bin/python", "-I", "/opt/decoding-server/healthcheck.py"]
ENTRYPOINT ["/opt/decoding-server/bin/decoding-server"]
CMD ["serve"]

FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    DECODING_SERVER_DEVICE=cuda

FROM runtime AS cpu
ENV DECODING_SERVER_DEVICE=cpu
