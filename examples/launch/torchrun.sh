#!/usr/bin/env bash
# Trains on one node or many with torchrun; the same line for the first start and for every restart. On every node:
#
#   NNODES=2 NODE_RANK=0 RDZV_ENDPOINT=node0:29400 examples/launch/torchrun.sh --config my.yaml
#
# (NODE_RANK=1 on the other one; the node of RDZV_ENDPOINT is 0.) Arguments go to `lightning-scale fit`. The
# configuration names the run's folder, which all nodes see: examples/launch/checkpoints.yaml has what is needed.
set -euo pipefail

NNODES="${NNODES:-1}"                            # how many nodes
NODE_RANK="${NODE_RANK:-}"                       # which one this is, from 0
RDZV_ENDPOINT="${RDZV_ENDPOINT:-localhost:29400}" # a port on node 0, where the nodes meet
RDZV_ID="${RDZV_ID:-lightning_scale}"            # another one for each run that uses that port
MAX_RESTARTS="${MAX_RESTARTS:-3}"                # how often the ranks are started anew after one has failed
LOG_DIR="${LOG_DIR:-logs}"                       # one file for each rank, rank-N.log
GRACE_SECONDS="${GRACE_SECONDS:-120}"            # after SIGTERM: time for a step, or a validation, and a checkpoint
LOCAL_ADDR="${LOCAL_ADDR:-}"                     # this node's address, where its host name does not resolve
if [ -z "${NPROC_PER_NODE:-}" ]; then            # ranks on this node: one a GPU, or one
    NPROC_PER_NODE="$( (nvidia-smi -L 2>/dev/null || true) | grep -c '^GPU' || true)"
    [ "$NPROC_PER_NODE" -gt 0 ] || NPROC_PER_NODE=1
fi

arguments=(
    --nnodes "$NNODES" --nproc-per-node "$NPROC_PER_NODE"
    --rdzv-backend c10d --rdzv-endpoint "$RDZV_ENDPOINT" --rdzv-id "$RDZV_ID" --max-restarts "$MAX_RESTARTS"
)
if [ -n "$NODE_RANK" ]; then
    arguments+=(--node-rank "$NODE_RANK" --rdzv-conf "is_host=$([ "$NODE_RANK" -eq 0 ] && echo true || echo false)")
fi
if [ -n "$LOCAL_ADDR" ]; then
    arguments+=(--local-addr "$LOCAL_ADDR")
fi

mkdir -p "$LOG_DIR"
export LOG_DIR TORCH_ELASTIC_SHUTDOWN_TIMEOUT="$GRACE_SECONDS"
# Ranks meet in a store of their own: with the one that torchrun otherwise shares with them, ranks that were started anew
# hung or failed to connect (torch 2.13).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# `exec`: signals reach the training process itself. The last options win over what the configuration says.
# shellcheck disable=SC2016  # $RANK is torchrun's, known only inside
exec torchrun "${arguments[@]}" --no-python bash -c 'exec "$@" >>"$LOG_DIR/rank-$RANK.log" 2>&1' rank \
    lightning-scale fit "$@" --resume auto --trainer.num_nodes "$NNODES" --trainer.devices "$NPROC_PER_NODE"
