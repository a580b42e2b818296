# shellcheck shell=bash
# Body of phase1_training.sh and full_training.sh, which set MODEL_CONFIG and PLAN.
#
# Environment variables, each used only when set:
#   MODEL_CONFIG   LR_PROJECTOR   LR_ADAPTER   NUM_EPOCHS   TRAIN_BS
#   GRADIENT_ACCUMULATION_STEPS   DATA_ROOT   OUTPUT_ROOT
# Arguments go to safe-train as they are, e.g. --backbone FOLDER --set model.projector.scale=2.0
#
# The run's name is made of the configuration and a digest of all settings, so the same call goes
# on with its run, and a call with other settings begins another one. TERM, USR1 and Ctrl-C are
# passed on; safe-train saves and exits with 3, and the job is queued again where there is SLURM.
# A task of a job array (sbatch --array=0-2) trains with its number as seed, in a run of its own.
# A job of several tasks (sbatch --ntasks=4 --gpus=4) trains with one process per task.

options=() # what the run is
launch=()  # how it is started: may differ when it goes on
output=${OUTPUT_ROOT:-runs}
name="" run=""
if [[ -n ${LR_PROJECTOR:-} ]]; then options+=(--set "optim.lr_projector=$LR_PROJECTOR"); fi
if [[ -n ${LR_ADAPTER:-} ]]; then options+=(--set "optim.lr_adapter=$LR_ADAPTER"); fi
if [[ -n ${TRAIN_BS:-} ]]; then options+=(--set "optim.batch_size=$TRAIN_BS"); fi
if [[ -n ${GRADIENT_ACCUMULATION_STEPS:-} ]]; then
    options+=(--set "optim.accumulation=$GRADIENT_ACCUMULATION_STEPS")
fi
if [[ -n ${NUM_EPOCHS:-} ]]; then options+=(--epochs "$NUM_EPOCHS"); fi
if [[ -n ${DATA_ROOT:-} ]]; then options+=(--data "$DATA_ROOT"); fi
while (($#)); do
    case $1 in
        --name) name=${2:?a name must follow --name} && shift ;;
        --output) output=${2:?a folder must follow --output} && shift ;;
        --resume) run=${2:?a run must follow --resume} && shift ;;
        --shard) launch+=("$1") ;;
        --device | --track | --probe-every) launch+=("$1" "${2:?a value must follow $1}") && shift ;;
        *) options+=("$1") ;;
    esac
    shift
done

safe_train=$(command -v safe-train || true)
if [[ -z $safe_train ]]; then
    safe_train=$(cd "$(dirname "$body")/.." && pwd)/.venv/bin/safe-train
fi
if [[ ! -x $safe_train ]]; then
    echo "safe-train is not installed: run 'make demo' in the repository once, or activate" \
        "the environment that has it" >&2
    exit 2
fi

seed=${SLURM_ARRAY_TASK_ID:-}
if [[ -n $seed && -n $run ]]; then
    echo "--resume $run: the tasks of a job array would all go on with one run; give --name" >&2
    exit 2
fi

digest=$(printf '%s\n' "${options[@]+"${options[@]}"}" | cksum | cut -d ' ' -f 1)
name=${name:-$MODEL_CONFIG-$(printf '%08x' "$digest")}
if [[ -n $seed ]]; then
    seeds=$output/$name-seed
    name=$name-seed$seed
    options+=(--seed "$seed")
fi
run=${run:-$output/$name}

settings=${options[*]:-as in the configuration}
cat <<EOF
$PLAN

  configuration  $MODEL_CONFIG   (safe-train show $MODEL_CONFIG)
  settings       $settings
  run            $run
  program        $safe_train

What its score on the test split (CIDEr-D x 100) will mean:

  > 30    connectivity VERIFIED    go on to Phase 2: remove the bottleneck, train longer
  25-30   PARTIAL success          may still need Phase 2's fixes
  < 25    still BLOCKED            look for the broken link: losses, gradients, gates

A score that another clip's audio reaches as well verifies nothing, however high it is.

EOF

if [[ -f $run/config.json ]]; then
    echo "$run exists: going on with it"
    command=("$safe_train" "$MODEL_CONFIG" --resume "$run")
    command+=("${launch[@]+"${launch[@]}"}")
else
    command=("$safe_train" "$MODEL_CONFIG" --output "$output" --name "$name"
        "${options[@]+"${options[@]}"}" "${launch[@]+"${launch[@]}"}")
fi

if [[ ${SLURM_NTASKS:-1} -gt 1 ]]; then command=(srun "${command[@]}"); fi

stopping=""
forward() {
    stopping=$1
    kill -s "$1" "$child" 2>/dev/null || true
}
# Ctrl-C reaches safe-train from the terminal, too; a second one would cut it off, TERM does not.
trap 'forward TERM' TERM INT
trap 'forward USR1' USR1

"${command[@]}" &
child=$!
while true; do # a trapped signal ends `wait` early
    code=0
    wait "$child" || code=$?
    kill -0 "$child" 2>/dev/null || break
done

# 3: stopped and saved; above 128 after a signal: stopped before there was anything to save
if [[ $code -eq 3 || (-n $stopping && $code -gt 128) ]]; then
    if [[ -n ${SLURM_JOB_ID:-} ]] && command -v scontrol >/dev/null; then
        echo "stopped; queueing job $SLURM_JOB_ID again to go on with $run"
        scontrol requeue "$SLURM_JOB_ID"
    else
        echo "stopped; the same call goes on with $run"
    fi
fi
if [[ $code -eq 4 ]]; then
    echo "a process was lost; the same call goes on with $run"
fi
if [[ -n $seed && $code -le 1 ]]; then
    echo "all seeds side by side: safe-probe compare $seeds*"
fi
exit "$code"
