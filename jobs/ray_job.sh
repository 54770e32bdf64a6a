#!/usr/bin/env bash
# A sweep on a Ray cluster that is already up:  jobs/ray_job.sh
#
# Edit: the cluster's address, the folder, and the last line. Every node needs bdtune in the image or environment that
# Ray runs in, and SHARED on a file system that all of them see. The client needs bdtune[cluster], as Ray Jobs do.
# Submitting it again goes on with the sweep.
#
# Ray runs whatever is sent to its ports: reach the dashboard through a tunnel or a private network only, such as
#   ssh -N -L 8265:127.0.0.1:8265 HEAD
# and give the cluster a token (RAY_AUTH_MODE=token; `ray get-auth-token`).

set -euo pipefail
SHARED=/shared
export RAY_API_SERVER_ADDRESS=${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}
# Results may lie in a bucket instead of SHARED (every node needs bdtune[cloud]):
# export BDTUNE_STORE=s3://my-bucket/gssd

# `ray job stop` sends SIGTERM, and SIGKILL 3 s later unless told otherwise: the sweep needs longer to end in order.
ENVIRONMENT='{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}'
exec ray job submit --no-wait --runtime-env-json "$ENVIRONMENT" -- \
    bdtune sweep paper/gssd_k1 data_root="$SHARED/data" resources.gpu=0.5 --address auto \
    --out "$SHARED/bdtune-runs" ${BDTUNE_STORE:+--store "$BDTUNE_STORE"}
