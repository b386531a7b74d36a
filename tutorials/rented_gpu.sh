#!/usr/bin/env bash
# From a fresh GPU machine (Lambda or any other with Python 3.11 and a driver) and a folder of clips to a LoRA:
#
#   bash rented_gpu.sh CLIPS [MODEL] [CONFIG]
#
#   CLIPS    folder of clips with a .txt caption beside each, or a csv, json or jsonl file
#   MODEL    ltx-2.3 (default), ltx-2, tiny, or the path of a checkpoint (then TEXT_ENCODER is its Gemma folder)
#   CONFIG   a packaged example (default t2v_lora; `ltx-nb config list` names them) or a YAML file
#
# It installs, fetches the models, prepares the clips, and trains in the background: the connection may be closed. Say it
# again after a machine was lost or a step failed: what is done is passed over, and training goes on from its last
# checkpoint. Everything lands in WORK (default: ltx_nb_runs/ and the name of the clips, where you are): start it in a
# folder that outlives the machine. Further settings from the environment:
#
#   HF_TOKEN         a token that may read, of an account that has accepted Gemma's licence
#   LTX_NB_MODELS    where models lie (default: models)
#   PREPARE          more options of `ltx-nb prepare`, such as "--resolution-buckets 960x544x89 --fps 24"
#   TRAIN            more options of `ltx-nb train`, such as "--set optimization.steps=1000"
#   SOURCE           what pip installs (default: the repository)
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,20s/^# \{0,1\}//p' "$0"; exit 2; }
CLIPS=$1 MODEL=${2:-ltx-2.3} CONFIG=${3:-t2v_lora}
[ -e "$CLIPS" ] || { echo "no clips at $CLIPS" >&2; exit 1; }
NAME=$(basename "${CLIPS%/}"); WORK=${WORK:-$PWD/ltx_nb_runs/${NAME%.*}}
mkdir -p "$WORK"

if [ -f "$WORK/train.pid" ] && kill -0 "$(cat "$WORK/train.pid")" 2>/dev/null; then
  echo "It is training already (process $(cat "$WORK/train.pid")): tail -f $WORK/train.log"; exit 0
fi

if ! command -v ltx-nb > /dev/null; then
  VENV=$PWD/ltx_nb_venv
  if [ ! -x "$VENV/bin/ltx-nb" ]; then
    echo "1/4 installing into $VENV, beside the machine's own PyTorch"
    python3 -m venv --system-site-packages "$VENV"
    KEPT=$("$VENV/bin/python" -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' 2> /dev/null || true)
    "$VENV/bin/python" -m pip install --quiet "ltx_nb[gpu] @ ${SOURCE:-git+https://github.com/ltx-nb/ltx_nb}" $KEPT
  fi
  export PATH="$VENV/bin:$PATH"
fi

case $MODEL in
  ltx-*) echo "2/4 models"; ltx-nb download "$MODEL" gemma-3 ;;
esac
MODELS=(--model "$MODEL"); [ -z "${TEXT_ENCODER:-}" ] || MODELS+=(--text-encoder "$TEXT_ENCODER")

echo "3/4 preparing $CLIPS"
ltx-nb prepare "$CLIPS" -o "$WORK/data" "${MODELS[@]}" ${PREPARE:-}

RUN=(ltx-nb train "$CONFIG" "${MODELS[@]}" --data "$WORK/data" -o "$WORK/run" ${TRAIN:-})
if compgen -G "$WORK/run/checkpoints/*.safetensors" > /dev/null; then RUN+=(--resume "$WORK/run"); fi
"${RUN[@]}" --check
nohup "${RUN[@]}" --progress plain >> "$WORK/train.log" 2>&1 < /dev/null &
echo $! > "$WORK/train.pid"
echo "4/4 training in the background (process $!)
  watch   tail -f $WORK/train.log
  stop    kill $!        (it saves; the same command goes on)
  result  $WORK/run/checkpoints"
