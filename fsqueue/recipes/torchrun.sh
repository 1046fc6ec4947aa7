#!/bin/bash
# All ranks of a node under torchrun, which starts all of them again where one has raised or was killed.
#     RUN=/shared/run RANKS=8 bash torchrun.sh
# The rollouts run elsewhere; restart_s keeps them waiting meanwhile, instead of stopping with the rank that raised.
set -e
python prepare.py "$RUN" --restart-s=600
exec torchrun --standalone --nproc-per-node="${RANKS:-2}" --max-restarts=3 trainer.py "$RUN" "$@"
