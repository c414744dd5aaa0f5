#!/bin/sh
# Measures again what stands in this folder: one JSON and one Markdown report each, beside README.md that lists them.
#
#   docs/reports/make.sh [NAME-OR-PATTERN...]        e.g. make.sh tracking-mot15 'pose-*'
#
# A measurement whose data or model is not there is skipped and named. Missed bars are reported at the end, exit code 1.
# DATA: folder of the data sets (default ../shared/data), POSENET: folder of PoseNet's files (default DATA/../models/posenet).
# REPORTS: where the reports go (default docs/reports).
# Pictures come from simulated scenes or show figures only: no frame of real footage is written here (--examples 0).
set -u
cd "$(dirname "$0")/../.." || exit 1
DATA=${DATA:-../shared/data}
POSENET=${POSENET:-$DATA/../models/posenet}
REPORTS=${REPORTS:-docs/reports}
GATE=configs/release-gate.yaml
WORK=$(mktemp -d) || exit 1
trap 'rm -rf "$WORK"' EXIT
trap 'exit 130' INT TERM
PICKED="$*"
missed=""

wanted() {  # wanted NAME: is this one asked for?
    [ -z "$PICKED" ] && return 0
    for pattern in $PICKED; do
        # shellcheck disable=SC2254  # it is a pattern
        case $1 in $pattern) return 0 ;; esac
    done
    return 1
}

there() {  # there NAME PATH...: skip and say so unless every path is there
    name=$1
    shift
    for path in "$@"; do
        if [ ! -e "$path" ]; then
            echo "skipped  $name: no $path"
            return 1
        fi
    done
}

measure() {  # measure NAME KIND ARGUMENTS...
    name=$1
    kind=$2
    shift 2
    echo "measure  $name"
    if ! recognizer-agent evaluate "$kind" "$@" --report "$REPORTS/$name.json" >"$WORK/$name.log" 2>&1; then
        grep -E '^(missed|error):' "$WORK/$name.log" | sed 's/^/         /'
        missed="$missed $name"
    fi
}

coco="--annotations $DATA/pose/coco-mini/annotations/person_keypoints_train2017.json --images $DATA/pose/coco-mini/train2017
      --annotations $DATA/pose/mmpose-coco/test_coco.json --images $DATA/pose/mmpose-coco"
coco="$coco --examples 0"
coco_note="84 COCO images with 98 people (evaluation only)"
echo "pose: {estimator: rtmo, model: shipped:pose-nano}" >"$WORK/nano.yaml"
nano="--config $WORK/nano.yaml"
[ -e configs/pose-nano.yaml ] && nano="--config configs/pose-nano.yaml"

for size in 353_481 481_641; do
    name=pose-coco-posenet-$(echo $size | tr _ x)
    model=$POSENET/posenet_mobilenet_v1_075_${size}_quant.tflite
    if wanted "$name" && there "$name" "$DATA/pose" "$model"; then
        # shellcheck disable=SC2086  # lists of options
        POSENET_MODEL=$(realpath "$model") measure "$name" pose $coco --config configs/posenet.yaml --note "$coco_note"
    fi
done

name=pose-coco-nano
if wanted $name && there $name "$DATA/pose" models/pose-nano/model.onnx; then
    # shellcheck disable=SC2086
    measure $name pose $coco $nano --note "$coco_note" --gate $GATE --bars pose/real
fi

echo "pose: {model: shipped:pose-nano}" >"$WORK/fp32.yaml"
fp32="$nano --config $WORK/fp32.yaml"  # the larger bundle, of more exact numbers
name=pose-coco-nano-fp32
if wanted $name && there $name "$DATA/pose" models/pose-nano/model.onnx; then
    # shellcheck disable=SC2086
    measure $name pose $coco $fp32 --note "$coco_note" --gate $GATE --bars pose/real
fi

name=pose-simulated-nano
if { wanted pose-simulated-nano || wanted pose-simulated-nano-fp32; } && there $name models/pose-nano/model.onnx; then
    sets=""
    for scenario in crowd fight fall mixed near-misses exercise; do
        for seed in 2000001 2000002; do
            out=$WORK/$scenario-$seed
            python -m agent.simulation.export --scenario $scenario --seed $seed --people 4 --seconds 40 --fps 0.5 \
                --images --out "$out" >/dev/null || exit 1
            sets="$sets --annotations $out/person_keypoints.json --images $out/img1"
        done
    done
    for name in pose-simulated-nano pose-simulated-nano-fp32; do
        wanted $name || continue
        variant=$nano
        [ $name = pose-simulated-nano ] || variant=$fp32
        # shellcheck disable=SC2086
        measure $name pose $sets $variant --note "12 simulated scenes that were never trained on" --gate $GATE --bars pose/simulated
    done
    rm -rf "${WORK:?}"/*-2000001 "${WORK:?}"/*-2000002
fi

name=speed
if wanted $name && there $name models/pose-nano/model.onnx; then
    echo "measure  $name"
    {
        printf '# speed\n\n`recognizer-agent models bench` on two threads (pose) and on one (actions), batch 1, CPU; a bare session beside the agent'"'"'s own path. '
        printf 'Measured on a shared machine: %s.\n' "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)"
        for model in pose-nano:2 pose-nano-int8:2 fight-stgcn:1 fight-stgcn-nano:1 fall-stgcn:1; do
            printf '\n## %s\n\n```\n' "${model%:*}"
            recognizer-agent models bench "shipped:${model%:*}" --threads "${model#*:}" --batch 1 --provider cpu
            printf '```\n'
        done
    } >"$REPORTS/$name.md" || missed="$missed $name"
fi

name=tracking-mot15
if wanted $name && there $name "$DATA/mot/mot15"; then
    sequences=""
    for sequence in PETS09-S2L1 TUD-Stadtmitte ADL-Rundle-6 ETH-Bahnhof ETH-Pedcross2 KITTI-17; do
        folder=$DATA/mot/mot15/$sequence
        sequences="$sequences --detections $folder/det/det.txt --truth $folder/gt/gt.txt"
    done
    echo "tracking: {keep_wide: false}" >"$WORK/upstream.yaml"  # as upstream, whose figures these are compared with
    # shellcheck disable=SC2086
    measure $name tracking $sequences --config "$WORK/upstream.yaml" --gate $GATE \
        --note "MOT15 detections and ground truth (evaluation only, non-commercial), rows flagged 0 left out"
fi

for table in fight fight-nano fall; do  # as models/training/train.py and with_change.py write them
    name=action-$table-folds
    if wanted "$name" && there "$name" "docs/reports/folds/$table.csv"; then
        measure "$name" action --service ${table%-nano} --predictions "docs/reports/folds/$table.csv" --gate $GATE \
            --note "cross-validation of the training recipe: each clip judged by a network that saw nothing of its source"
    fi
done

name=action-fight-dev-posenet
model=$POSENET/posenet_mobilenet_v1_075_481_641_quant.tflite
if wanted $name && there $name "$DATA/fight/clips.csv" "$model"; then
    POSENET_MODEL=$(realpath "$model") measure $name action --service fight --data "$DATA/fight/clips.csv" --where split=dev \
        --sources "$DATA/fight/sources.csv" --examples 0 --config configs/posenet.yaml --gate $GATE \
        --note "the 40 dev clips of the surveillance camera fight data set: cameras never trained on"
fi

name=action-fight-dev-nano
if wanted $name && there $name "$DATA/fight/clips.csv" models/pose-nano/model.onnx; then
    # shellcheck disable=SC2086
    measure $name action --service fight --data "$DATA/fight/clips.csv" --where split=dev --sources "$DATA/fight/sources.csv" --examples 0 \
        $nano --gate $GATE --note "the same clips through pose-nano and the fight model that goes with it"
fi

name=events-truth
if wanted $name && there $name models/human-motion; then
    measure $name events --scenarios docs/reports/scenes-long.yaml --poses truth --examples 8 --gate $GATE \
        --note "the action models by themselves: key points are the simulation's, with an estimator's noise"
fi

name=events-nano
if wanted $name && there $name models/human-motion models/pose-nano/model.onnx; then
    # shellcheck disable=SC2086
    measure $name events --scenarios docs/reports/scenes-long.yaml --jobs "$(nproc)" $nano --examples 8 --gate $GATE \
        --note "picture to event: drawn scenes, pose-nano, tracking, action models, rules"
fi

python docs/reports/index.py "$REPORTS"
if [ -n "$missed" ]; then
    echo "missed a bar or failed:$missed"
    exit 1
fi
