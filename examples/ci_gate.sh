#!/usr/bin/env bash
# Champion and challenger in CI: a change of recipe may not make the package worse.
#
#   examples/ci_gate.sh MODEL CHAMPION_RECIPE CHALLENGER_RECIPE WORKDIR [MAX_REGRESSION]
#
# Exit 0: the challenger is as good. Exit 1: a check failed or a metric regressed. Exit 2: wrong use.
set -euo pipefail

if [ $# -lt 4 ] || [ "$2" = "$3" ]; then
    echo "usage: $0 MODEL CHAMPION_RECIPE CHALLENGER_RECIPE WORKDIR [MAX_REGRESSION]; two different recipes" >&2
    exit 2
fi
model=$1 champion=$2 challenger=$3 work=$4 effect=${5:-0.10}

edgec build "$model" -r "$champion" -o "$work/champion" --verify
edgec build "$model" -r "$challenger" -o "$work/challenger" --verify

# Both are measured in one run, in turns, so that the machine's mood hits both alike.
edgec bench "$work"/champion/* "$work"/challenger/* --rounds 5 -o "$work/both.jsonl"
edgec compare "$work/both.jsonl" --against "$champion" --across-schemes --max-regression "$effect" --html "$work/report.html"
