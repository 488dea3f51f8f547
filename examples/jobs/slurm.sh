#!/usr/bin/env bash
# Handwritten digits on two machines with four processes each, under Slurm:
#
#     sbatch examples/jobs/slurm.sh
#
# srun starts the processes; no other launcher is needed. Slurm sends SIGTERM two minutes before the
# time limit and on preemption. The run then saves and ends, and the requeued job resumes it.
#SBATCH --job-name=digits
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=2
#SBATCH --time=01:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

# The folder must be visible to all machines. Without a checkpoint, --resume starts from the beginning.
# SIGTERM leads to exit code 143. If one process fails, srun ends the step at once.
code=0
srun --kill-on-bad-exit=1 \
    python examples/digits.py --resume --output "${OUTPUT:-runs/digits}" || code=$?

if [[ "$code" == 143 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
