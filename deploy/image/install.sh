#!/bin/sh
# The image's installation, in two steps so that a change of our code keeps the layer of the dependencies:
#   install.sh dependencies FOLDER   a virtual environment with torch and what pyproject.toml asks for
#   install.sh package FOLDER        this project, without its dependencies
# TORCH: requirement of torch. TORCH_INDEX: package index to take it from; empty: the default one. PYTHON: by which the
# environment is made. Run it in the folder of pyproject.toml. `tests/deploy/test_image.py` runs the same script in a folder of its own.
set -eu
step=$1
folder=$2
PIP_DISABLE_PIP_VERSION_CHECK=1
export PIP_DISABLE_PIP_VERSION_CHECK
case $step in
dependencies)
    "${PYTHON:-python3}" -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "${TORCH:-torch}"
    "$folder/bin/python" -c '
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))
print("\n".join(project["project"]["dependencies"] + project["project"]["optional-dependencies"]["otel"]))
print("\n".join(project["build-system"]["requires"]))
' >"$folder/requirements.txt"
    "$folder/bin/python" -m pip install --quiet --requirement "$folder/requirements.txt"
    # Headers and link libraries of torch are for building extensions of it, which nobody does here.
    site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    rm -rf "$site/torch/include" "$site/torch/share/cmake" "$site/torch/test"
    find "$site/torch" -name '*.a' -delete
    ;;
package)
    "$folder/bin/python" -m pip install --quiet --no-deps --no-build-isolation --no-cache-dir .
    ;;
*)
    echo "unknown step: $step" >&2
    exit 2
    ;;
esac
