#!/usr/bin/env bash
# What an image weighs, and how long a container of it takes to start and import; the figures of README.md.
#
#   images/measure.sh fedhelp/hub:0.1.0 fedhelp/silo:0.1.0
set -euo pipefail

restricted=(--rm --read-only --cap-drop ALL --security-opt no-new-privileges --tmpfs /tmp --network none)

seconds() { # the median of three runs
  for _ in 1 2 3; do
    start=$(date +%s.%N)
    "$@" >/dev/null 2>&1 || { echo "measure.sh: error: failed: $*" >&2; exit 1; }
    awk -v start="$start" -v end="$(date +%s.%N)" 'BEGIN {printf "%.1f\n", end - start}'
  done | sort -n | sed -n 2p
}

in_image() { docker run "${restricted[@]}" "$image" python3 "$@"; }

for image in "$@"; do
  echo "$image"
  docker image inspect "$image" --format '{{.Size}}' | awk '{printf "  %-58s %6.0f MB\n", "unpacked", $1 / 1e6}'
  docker save "$image" | gzip -1 | wc -c | awk '{printf "  %-58s %6.0f MB\n", "docker save | gzip -1 (about what a registry sends)", $1 / 1e6}'
  printf '  %-58s %6s s\n' "an interpreter that does nothing" "$(seconds in_image -c pass)"
  if in_image -c 'import torch' 2>/dev/null; then
    printf '  %-58s %6s s\n' "the worker's --help" "$(seconds in_image -m fedhelp_dispatch.worker --help)"
    printf '  %-58s %6s s\n' "import torch" "$(seconds in_image -c 'import torch')"
    printf '  %-58s %6s s\n' "import monai.networks.nets" "$(seconds in_image -c 'import monai.networks.nets')"
  else
    printf '  %-58s %6s s\n' "aggregation --help" "$(seconds in_image -m fedhelp_components.aggregation --help)"
    printf '  %-58s %6s s\n' "MLflow's client" "$(seconds in_image -c 'from mlflow import MlflowClient')"
    printf '  %-58s %6s s\n' "kfp.dsl.executor_main" "$(seconds in_image -c 'import kfp.dsl.executor_main')"
  fi
done
