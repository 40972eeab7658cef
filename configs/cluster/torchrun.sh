#!/usr/bin/env bash
# One run on several machines: start this on each of them, at about the same time, with the same options of `fit`.
#
#   NODES=2 HEAD=node-a bash configs/cluster/torchrun.sh --config configs/paper/squad-v1-hybrid-filled.yaml
#
# NODES       machines, 1 by default
# HEAD        the one where all meet, by its name or address; localhost by default
# PORT        a free one there, 29400 by default
# GPUS        processes on each machine, one a GPU; by default as many as there are
#
# All machines see the same folders (runs, data, the hub's cache), for example by NFS. If one fails, all end; start it on
# all of them again: with --resume true the run goes on in its folder.
set -euo pipefail
nodes=${NODES:-1}
gpus=${GPUS:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}
# torchrun knows the machine's own name, but of its own addresses only those that its name stands for.
meeting=()
if [ "$nodes" -gt 1 ] && [[ " $(hostname -I 2>/dev/null || true)" == *" ${HEAD:-localhost} "* ]]; then
    meeting=(--rdzv_conf is_host=1)
fi
exec torchrun --nnodes "$nodes" --nproc_per_node "$gpus" --rdzv_backend c10d --rdzv_id bplightning "${meeting[@]}" \
    --rdzv_endpoint "${HEAD:-localhost}:${PORT:-29400}" \
    "$(dirname "${BASH_SOURCE[0]}")/../../cli.py" fit \
    --trainer.num_nodes "$nodes" --trainer.devices "$gpus" --trainer.strategy ddp --resume true "$@"
