#!/usr/bin/env bash
# Trains the canary with every trainer of this folder, each in an environment of its own below build/trainers.
# Usage: run.sh PYTHON [TRAINER ...]      PYTHON is the project's own; without trainers, all of them.
set -u
here=$(cd "$(dirname "$0")" && pwd)
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
shift
build=$here/../../build/trainers
mkdir -p "$build"
"$python" "$here/make_canary.py" "$build/canary" > "$build/canary.log" 2>&1 || { tail -20 "$build/canary.log"; exit 1; }
[ $# -gt 0 ] || set -- $(cd "$here" && ls -d */ | tr -d / | grep -v __pycache__)
passed=0 failed=0
for name in "$@"; do
    venv=$build/$name
    if ! cmp -s "$here/$name/requirements.txt" "$venv/installed.txt"; then
        "$python" -m venv --clear "$venv" &&
            "$venv/bin/pip" install --quiet "$(grep '^torch==' "$here/$name/requirements.txt")" &&
            "$venv/bin/pip" install --quiet -r "$here/$name/requirements.txt" &&
            cp "$here/$name/requirements.txt" "$venv/installed.txt"
    fi > "$build/$name.pip.log" 2>&1
    if (cd "$build" && PYTHONPATH=$here HF_HUB_OFFLINE=1 "$venv/bin/python" "$here/$name/train.py" "$build/canary") \
        > "$build/$name.log" 2>&1; then
        passed=$((passed + 1))
        grep "relative difference" "$build/$name.log"
    else
        failed=$((failed + 1))
        echo "$name: FAILED, see $build/$name.log and $build/$name.pip.log"
        tail -3 "$build/$name.log"
    fi
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
