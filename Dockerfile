# Two images, each one static program and nothing else: `--target codex` (train, evaluate, serve, verify) and
# `--target codex-controller`. `--target codex-cuda` is `codex` for nodes with NVIDIA GPUs, with the CUDA libraries that it links.
#
#   make image-cuda                        builds codex-cuda with cargo on this machine, which needs no GPU
#   docker build --target codex .          builds the programs from source, in a container
#   make image                             builds them with cargo on this machine and packs them (ARTIFACTS=prebuilt)
#
# Building from source in a container has not been tried to the end; `make image` is what every test uses.
ARG ARTIFACTS=source

FROM rust:1.95-slim-bookworm AS source
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package codex --package codex-controller \
    && host="$(rustc -vV | sed -n 's/^host: //p')" \
    && mkdir /programs \
    && for program in codex codex-controller; do \
        strip -o "/programs/$program" "target/$host/release/$program"; \
    done

# The build context holds the two programs, stripped.
FROM scratch AS prebuilt
COPY codex codex-controller /programs/

FROM ${ARTIFACTS} AS programs

FROM scratch AS codex
LABEL org.opencontainers.image.title="codex" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=programs /programs/codex /codex
# What environment.json names: --build-arg GIT_COMMIT="$(git rev-parse HEAD)".
ARG GIT_COMMIT=
LABEL org.opencontainers.image.revision="${GIT_COMMIT}"
ENV CODEX_GIT_COMMIT=${GIT_COMMIT}
USER 65532:65532
ENTRYPOINT ["/codex"]

FROM scratch AS codex-controller
LABEL org.opencontainers.image.title="codex-controller" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=programs /programs/codex-controller /codex-controller
ARG GIT_COMMIT=
LABEL org.opencontainers.image.revision="${GIT_COMMIT}"
USER 65532:65532
ENTRYPOINT ["/codex-controller"]

# The build context holds a root directory: the program and its libraries. The NVIDIA container toolkit mounts those of the driver.
FROM scratch AS codex-cuda
LABEL org.opencontainers.image.title="codex-cuda" org.opencontainers.image.licenses="Apache-2.0"
COPY cuda /
ARG GIT_COMMIT=
LABEL org.opencontainers.image.revision="${GIT_COMMIT}"
ENV CODEX_GIT_COMMIT=${GIT_COMMIT} \
    LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu:/usr/lib64:/usr/local/nvidia/lib64 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 65532:65532
ENTRYPOINT ["/codex"]
