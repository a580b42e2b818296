#!/usr/bin/env bash
#SBATCH --job-name=safe-full
#SBATCH --gpus=1
#SBATCH --cpus-per-gpu=8
#SBATCH --mem-per-gpu=48G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/full_%j.txt
#
# The baseline, and the way back from Phase 1: few tokens, small scale, low rank, slow gate.
#
#   bash scripts/full_training.sh
#   mkdir -p logs && sbatch scripts/full_training.sh          from the repository's root
#   sbatch --array=0-2 scripts/full_training.sh               seeds 0, 1 and 2, a run each
#
# What may be set, and how it stops and goes on: scripts/_train.sh.
set -euo pipefail

MODEL_CONFIG=${MODEL_CONFIG:-full}
PLAN="Baseline: what the configuration before Phase 1 reaches on these data"

body=$(dirname "${BASH_SOURCE[0]}")/_train.sh
# sbatch runs a copy of this file from its spool folder
[[ -f $body ]] || body=${SLURM_SUBMIT_DIR:?run this file from the repository}/scripts/_train.sh
# shellcheck source=scripts/_train.sh
source "$body"
