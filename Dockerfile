# docker build -t calotype .
# docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" calotype train my-pictures --size 64 --budget 30m
# With CUDA: docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 -t calotype-cuda .
#            docker run --rm --gpus all -v "$PWD:/work" calotype-cuda selftest --device cuda
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH=2.13.0
ARG EXTRAS=heic

# torch.compile needs a compiler; denoisers train faster with it
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

# torch first: this layer is large, and stays the same when Calotype changes
RUN pip install --no-cache-dir "torch==${TORCH}" --index-url "${TORCH_INDEX}"

COPY pyproject.toml README.md LICENSE /calotype/
COPY src /calotype/src
RUN pip install --no-cache-dir "/calotype[${EXTRAS}]" && rm -r /calotype

# With --user, files belong to the caller; that user has no home here, and no name
ENV HOME=/tmp USER=calotype
WORKDIR /work
ENTRYPOINT ["calotype"]
CMD ["--help"]
