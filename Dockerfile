# pgolf in a container, two targets. Build:
#
#   docker build --target cpu  -t pgolf:cpu .
#   docker build --target cuda -t pgolf:cuda .
#   docker build --target cuda --build-arg BASE=REGISTRY/CONTEST_IMAGE:TAG -t pgolf:contest .
#
# For builds that must repeat, name bases by digest: --build-arg PYTHON_BASE=python:3.11-slim@sha256:...
#
# Run. /srv/pgolf holds runs and data; the demo needs no network:
#
#   docker run --rm --network none pgolf:cpu run --preset demo --out /srv/pgolf/runs/demo
#   docker run --rm -v "$PWD/runs:/srv/pgolf/runs" -v "$PWD/data:/srv/pgolf/data:ro" pgolf:cpu doctor
#   docker run --rm --gpus all --shm-size=8g --ulimit memlock=-1 -v "$PWD/runs:/srv/pgolf/runs" pgolf:cuda doctor
#   docker run --rm --gpus all --shm-size=8g --ulimit memlock=-1 -v "$PWD/runs:/srv/pgolf/runs" -v "$PWD/data:/srv/pgolf/data:ro" \
#     --entrypoint torchrun pgolf:cuda --standalone --nproc_per_node=8 -m pgolf train /srv/pgolf/data/fineweb10B_sp1024 \
#     --preset baseline_sp1024 --out /srv/pgolf/runs/baseline
#
# The user is 1000:1000; a mounted directory must be writable for it, or add --user "$(id -u):$(id -g)".

ARG PYTHON_BASE=python:3.11-slim
ARG BASE=pytorch/pytorch:2.9.1-cuda12.8-cudnn9-devel


FROM ${PYTHON_BASE} AS cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /opt/pgolf
# Dependencies first: these layers stay while only pgolf's source changes. Everything comes as a wheel, no compiler.
COPY constraints/cpu.txt constraints/
RUN pip install --index-url https://download.pytorch.org/whl/cpu "$(grep '^torch==' constraints/cpu.txt)"
COPY pyproject.toml ./
RUN mkdir pgolf && touch pgolf/__init__.py README.md LICENSE \
 && pip install -c constraints/cpu.txt . && pip uninstall -y pgolf && rm -rf pgolf build *.egg-info
COPY LICENSE README.md ./
COPY pgolf pgolf
RUN pip install --no-deps . \
 && ! pip list --format=freeze | grep -i '^nvidia-' \
 && useradd --create-home --uid 1000 pgolf \
 && mkdir -p /srv/pgolf/runs /srv/pgolf/data && chown -R pgolf:pgolf /srv/pgolf
USER pgolf
WORKDIR /srv/pgolf
VOLUME ["/srv/pgolf/runs", "/srv/pgolf/data"]
ENTRYPOINT ["pgolf"]
CMD ["--help"]


# torch, CUDA and, in the devel image, the compiler that torch.compile and Triton want come with the base and are kept.
FROM ${BASE} AS cuda
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    PIP_BREAK_SYSTEM_PACKAGES=1
WORKDIR /opt/pgolf
COPY constraints/cuda.txt constraints/
COPY pyproject.toml ./
# The installed torch is written down as a constraint, so that pip cannot choose another, and is compared afterwards.
RUN python -c "import torch; print('torch==' + torch.__version__)" > /opt/pgolf/torch.txt \
 && mkdir pgolf && touch pgolf/__init__.py README.md LICENSE \
 && pip install -c constraints/cuda.txt -c torch.txt . && pip uninstall -y pgolf && rm -rf pgolf build *.egg-info \
 && python -c "import torch; print('torch==' + torch.__version__)" | cmp - torch.txt
COPY LICENSE README.md ./
COPY pgolf pgolf
# A base may already have a user with this number (Ubuntu 24.04 does); pgolf then runs as that one.
RUN pip install --no-deps . \
 && (id 1000 > /dev/null 2>&1 || useradd --create-home --uid 1000 pgolf) \
 && mkdir -p /srv/pgolf/runs /srv/pgolf/data && chown -R 1000:1000 /srv/pgolf
USER 1000:1000
ENV HOME=/tmp
WORKDIR /srv/pgolf
VOLUME ["/srv/pgolf/runs", "/srv/pgolf/data"]
ENTRYPOINT ["pgolf"]
CMD ["--help"]
