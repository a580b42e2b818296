#!/usr/bin/env bash
#SBATCH --job-name=safe-phase1
#SBATCH --gpus=1
#SBATCH --cpus-per-gpu=8
#SBATCH --mem-per-gpu=48G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/phase1_%j.txt
#
# Phase 1, the signal verification experiment: wide projector, many tokens, open gate, no retention.
#
#   bash scripts/phase1_training.sh
#   mkdir -p logs && sbatch scripts/phase1_training.sh        from the repository's root
#   MODEL_CONFIG=phase1 LR_PROJECTOR=1e-3 NUM_EPOCHS=20 sbatch scripts/phase1_training.sh
#   sbatch --array=0-2 scripts/phase1_training.sh               seeds 0, 1 and 2, a run each
#
# What may be set, and how it stops and goes on: scripts/_train.sh.
set -euo pipefail

MODEL_CONFIG=${MODEL_CONFIG:-phase1}
PLAN="Phase 1: does the sound reach the caption at all? (the baseline scored CIDEr 18)"

body=$(dirname "${BASH_SOURCE[0]}")/_train.sh
# sbatch runs a copy of this file from its spool folder
[[ -f $body ]] || body=${SLURM_SUBMIT_DIR:?run this file from the repository}/scripts/_train.sh
# shellcheck source=scripts/_train.sh
source "$body"
