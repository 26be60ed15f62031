#!/bin/sh
# What the image's build does, and what a test does where no container engine runs:
#
#   install.sh SOURCE VENV [LOCK]
#
# Builds the wheel of SOURCE (the repository) and installs it with its constraints into a new virtual environment.
# LOCK is a requirements file with a hash for each package; with it nothing else is installed.
# PYTHON names the interpreter.
set -eu

source=$1
venv=$2
lock=${3:-}
python=${PYTHON:-python3}
extras=local,dicom,fetch,slides,observe

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$venv"
pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"
}

# A copy, because a build writes beside its source.
mkdir "$work/source" "$work/wheels"
for part in pyproject.toml constraints.txt README.md LICENSE sdk local_backend deploy; do
    cp -R "$source/$part" "$work/source/"
done
export PIP_CONSTRAINT="$work/source/constraints.txt"
pip wheel -q --no-deps --wheel-dir "$work/wheels" "$work/source"
wheel=$(echo "$work"/wheels/medport-*.whl)

if [ -n "$lock" ]; then
    pip install -q --require-hashes --no-deps --only-binary :all: -r "$lock"
    pip install -q --no-deps "$wheel"
else
    # torch goes first and alone: by its exact version it resolves to one build, a range may bring gigabytes more.
    pip install -q "$(grep '^torch==' "$PIP_CONSTRAINT")"
    pip install -q "medport[$extras] @ file://$wheel"
fi
pip check
