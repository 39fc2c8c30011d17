#!/bin/bash
# One run on two nodes of eight GPUs.   sbatch deploy/slurm.sh gpt2-124m data.train=tokens
# The job asks for its end a minute before it: the run saves, and the job queues itself again and goes on.
#SBATCH --job-name=lmkit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@60
#SBATCH --requeue
set -euo pipefail
RUN=runs/$SLURM_JOB_ID
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if [ -e "$RUN/recipe.yaml" ]; then WHAT=(--resume "$RUN"); else WHAT=("$@" --out "$RUN"); fi
CODE=0
srun torchrun --nnodes="$SLURM_NNODES" --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint="$HEAD:29500" \
  -m lmkit pretrain "${WHAT[@]}" || CODE=$?
if [ "$CODE" = 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi  # 75: stopped with a checkpoint
exit "$CODE"
