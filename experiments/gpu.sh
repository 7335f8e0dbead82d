#!/usr/bin/env bash
# Work for a GPU that is rented for minutes, and that may have no package registry. Linux only.
#
#   experiments/gpu.sh pack     on a machine with a registry: fill .whl/ and data/gpu-rooms.h5, which travel to the GPU
#   experiments/gpu.sh check    on the GPU, at most 4 minutes: the GPU tests and the times of training steps
#   experiments/gpu.sh train    on the GPU, at most 6 minutes: render rooms, train, evaluate, draw
#
# `check --rehearse` and `train --rehearse` do the same on a CPU with tiny networks, in float32 and three times the time. Results are written to the folder
# $OUT (by default runs/gpu/results), check's to check/ and train's to train/: eight files in all, each smaller than
# 16 MB. train takes the fastest correct way of computing a step from the last check, if there was one.
set -u

usage="error: usage: experiments/gpu.sh pack | check [--rehearse] | train [--rehearse]"
work=${1-} rehearse=${2-}
case "$work $rehearse" in "pack " | "check " | "train " | "check --rehearse" | "train --rehearse") ;; *)
  echo "$usage" >&2; exit 2 ;;
esac
cd "$(dirname "$0")/.." || exit 2

rooms=data/gpu-rooms.h5
system=lom-genesis-v2
scratch=runs/gpu${rehearse:+-rehearsal}
patience=$([ "$rehearse" ] && echo 3 || echo 1) # factor of the limits: a CPU may be slow
python=$([ -x .venv/bin/python ] && echo "$PWD/.venv/bin/python" || command -v python3)

# --- pack ------------------------------------------------------------------------------------------------------------

pack() {
  # The GPU machine has torch, NumPy, SciPy, h5py, matplotlib, Pillow, scikit-learn, pytest and Python 3.12.
  local names="pyro-ppl pyro-api opt_einsum tqdm tyro docstring_parser typeguard lightning-fabric lightning-utilities
    fsspec packaging typing_extensions safetensors jaxtyping wadler_lindig beartype google-crc32c pytest-timeout
    pytest-xdist execnet mujoco mujoco-core glfw PyOpenGL" name pin platform platforms=()
  for platform in 2_39 2_35 2_34 2_31 2_28 2_27 2_24 2_17 2014 1; do
    platforms+=(--platform "manylinux${platform/#2_/_2_}_x86_64")
  done
  rm -rf .whl && mkdir .whl
  for name in $names; do
    pin=$(grep -i "^${name//[-_]/[-_]}==" constraints.txt) || { echo "error: constraints.txt does not pin $name" >&2; exit 2; }
    "$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
      --abi cp312 --abi abi3 --abi none "${platforms[@]}" -d .whl "$pin" \
      || { echo "error: there is no wheel of $pin for Python 3.12 on Linux" >&2; exit 2; }
  done
  [ -e "$rooms" ] || "$python" experiments/data.py render objects-room "$rooms" --num 3000 --workers 2 --compact || exit
  du -ch .whl "$rooms" | sed 's/^/  /'
  echo "The GPU machine needs this folder with .whl/ and $rooms."
}

# --- what check and train share --------------------------------------------------------------------------------------

# run SECONDS COMMAND...: run a command, and kill it and all its children after SECONDS at most
run() {
  local limit=$(($1 < left ? $1 : left)) began=$SECONDS code pid; shift
  echo; echo "+ $*"
  [ "$limit" -gt 0 ] || { echo "  not run: no time is left"; return 124; }
  timeout --kill-after=5 "$limit" "$@" & pid=$!
  groups+=($pid)
  wait $pid; code=$?
  kill -KILL -- -$pid 2>/dev/null # children that a command leaves behind
  echo "  exit code $code after $((SECONDS - began)) s, at $SECONDS s"
  count
  return $code
}

# count: set `left` to the seconds that are left for work
count() { left=$((budget - SECONDS)); }

stop() {
  trap - EXIT INT TERM
  local pid
  for pid in "${groups[@]}"; do kill -KILL -- -"$pid" 2>/dev/null; done
  exec >&- 2>&-
  wait
}

begin() { # begin SECONDS FOLDER
  budget=$(($1 * patience - 8)) groups=()
  results=${OUT:-$scratch/results}/$2
  mkdir -p "$results" $scratch || exit 2
  rm -f "$results"/*
  exec > >(stdbuf -oL tr '\r' '\n' | tee "$results/log.txt") 2>&1
  trap stop EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  export PYTHONUNBUFFERED=1 TQDM_MININTERVAL=10 OMP_NUM_THREADS=2
  count
  if [ -d .whl ] && [ ! -x .venv/bin/python ]; then
    [ -d .site ] || run $((60 * patience)) "$python" -m pip install -q --no-index --no-deps --no-compile --target .site .whl/*.whl \
      || { rm -rf .site; exit 2; }
    export PYTHONPATH=$PWD/.site:$PWD
  fi
  if [ "$rehearse" ]; then
    device=cpu
  else
    device=cuda
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  fi
  run $((60 * patience)) "$python" -c "import sys, torch; print(sys.version, torch.__version__); torch.ones(1, device='$device')" \
    || { echo "error: torch cannot use the device $device here"; exit 2; }
}

# --- check -----------------------------------------------------------------------------------------------------------

check() {
  begin 240 check
  local size="--slots 9 --batch-sizes 32 --steps 3" ways="eager cuda-graph compiled compiled-cuda-graph" processes=8
  local precisions="32-true bf16-mixed"
  if [ "$rehearse" ]; then
    # Without bfloat16 instructions, one step in bfloat16 takes a CPU more than 45 s.
    size="--slots 3 --batch-sizes 2 --resolutions 32 --steps 1" ways="eager" processes=2 precisions=32-true
  fi
  local benchmark="$python experiments/benchmark.py --device $device $size --precisions"
  # While the tests run, torch compiles the networks and keeps the results for the benchmark.
  if [ ! "$rehearse" ]; then
    local base precision
    for base in lom-genesis-v2 lom-emorl; do for precision in $precisions; do
      timeout --kill-after=5 90 $benchmark $precision --systems $base --modes compiled >/dev/null 2>&1 & groups+=($!)
    done; done
  fi
  run $((90 * patience)) "$python" -m pytest -q -m gpu -W ignore -n $processes --timeout $((80 * patience)) --gpu-tests-on $device \
    --junit-xml "$results/tests.xml" tests/test_gpu.py
  local tests=$? pid
  for pid in "${groups[@]}"; do kill -KILL -- -"$pid" 2>/dev/null; done
  run $((left - 15)) $benchmark $precisions --systems lom-genesis-v2 lom-emorl --modes $ways --limit $((45 * patience)) \
    --json "$results/benchmark.json"
  local rows=$?
  cp "$results/benchmark.json" "$results/tests.xml" $scratch/ 2>/dev/null
  echo; echo "Correct ways to take a step of $system, the fastest first (seconds, options of fit.py):"
  run $((20 * patience)) "$python" -m experiments.benchmarks.fastest $system $scratch/benchmark.json $scratch/tests.xml
  echo; echo "check: tests $([ $tests = 0 ] && echo passed || echo "FAILED ($tests)"), benchmark" \
    "$([ $rows = 0 ] && echo complete || echo "INCOMPLETE ($rows)"); $results"
  [ $tests = 0 ] && [ $rows = 0 ]
}

# --- train -----------------------------------------------------------------------------------------------------------

train() {
  begin 360 train
  local data=$scratch/rooms.h5 num=20000 workers=16 size="" evaluated=1000 reserve=$((75 * patience)) way seconds code=1 folder
  if [ "$rehearse" ]; then
    num=700 workers=2 evaluated=70
    size="--model.num-slots 3 --train.batch-size 2"
  fi
  [ -e $data ] || run $((90 * patience)) "$python" experiments/data.py render objects-room $data --num $num --workers $workers \
    || { echo "rooms cannot be rendered here: training uses $rooms"; data=$rooms; }
  # One line for each correct way to take a step, the fastest first. A plain step comes last: it always works.
  local ways
  ways=$("$python" -m experiments.benchmarks.fastest $system $scratch/benchmark.json $scratch/tests.xml 2>/dev/null)
  ways+=$'\n'"0.1 --train.precision 32-true"
  while read -r seconds way; do
    [ "$seconds" ] || continue
    count
    # Starting takes 20 s. A margin of a tenth, because the benchmark measures other images.
    local steps=$("$python" -c "print(max(4, int(($left - $reserve - 20) / $seconds * .9)))")
    [ "$rehearse" ] && steps=6 # the benchmark was rehearsed with smaller images
    local minute=$("$python" -c "print(max(2, min($steps, int(60 / $seconds))))")
    folder=$scratch/train-$SECONDS
    run $((left - reserve + 10)) "$python" experiments/fit.py $system-objects-room --data.path $data --runs-dir $folder \
      --train.steps "$steps" --train.checkpoint-every "$minute" --train.preview-every 0 $way $size
    code=$?
    [ $code = 2 ] || [ $code = 1 ] || break # a step that cannot be recorded, or is not finite
  done <<<"$ways"
  local run
  run=$(ls -d "$folder"/0* 2>/dev/null | head -1)
  [ "$run" ] && [ -d "$run/checkpoints" ] || { echo "error: nothing was trained"; return 1; }
  run $((60 * patience)) "$python" experiments/evaluate.py "$run" --num-images $evaluated --metrics ari reconstruction kl fd-pca64
  run $((30 * patience)) "$python" experiments/sample.py "$run"
  run $((15 * patience)) "$python" experiments/report.py "$run" --output "$results/report.html"
  local checkpoint
  checkpoint=$(ls -d "$run"/checkpoints/step-* | tail -1)
  cp "$checkpoint/weights.safetensors" "$results/"
  cp "$run/figures/samples-ordered-slots.png" "$results/samples.png"
  tar -czf "$results/run.tar.gz" -C "$run" --exclude='*.safetensors' .
  echo; echo "train: exit code $code, $checkpoint; $results"
  return $code
}

$work
