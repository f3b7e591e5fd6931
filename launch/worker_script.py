"""The start-up script of a TPU worker: install, run, report.

Google's agent runs it as root on every worker whenever the machine starts, so a restarted machine
resumes by itself, and nobody needs to watch. The values of a run are at the top, quoted; the rest
is the same for every run. The secret's value is read on the worker, and exists only in the
environment of one process.
"""

import shlex
from collections.abc import Sequence

from launch import gcloud
from launch.package import Archive
from launch.settings import RunSettings, extraction_flags

FOLDER = "/var/lib/qwen-launch"
MODULE = "inference.distributed_inference_with_activations"
INSTALLER = "uv==0.13.9"
BEAT = 60
"""Seconds between two reports of a running worker."""

LITERALLY = "# shellcheck disable=SC1003,SC2016  # values are meant literally, whatever they hold"

LINGER = 180
"""Seconds after its end until worker 0 deletes the slice, so that others can report."""


def worker_script(
    settings: RunSettings,
    archive: Archive,
    attempt: str,
    *,
    folder: str = FOLDER,
    beat: int = BEAT,
    linger: int = LINGER,
    pause: int = 5,
) -> str:
    """Return the script.

    Args:
        settings: settings of the run.
        archive: the program, which must be in the bucket when workers start.
        attempt: name of the attempt.
        folder: folder on the worker for all files.
        beat: seconds between two reports.
        linger: seconds after its end until worker 0 deletes the slice.
        pause: seconds before a retry.
    """
    home = f"{folder}/{settings.name}"
    secret = settings.hugging_face_token_secret
    lists = {
        "JOB": [f"{home}/venv/bin/python", "-m", MODULE, *extraction_flags(settings.extraction)],
        "READ_SECRET": gcloud.read_secret(secret) if secret else [],
        "TAKE_AWAY": [*gcloud.delete(settings), "--async"],
    }
    words = {
        "UNIT": gcloud.UNIT,
        "FOLDER": home,
        "ATTEMPT": attempt,
        "REPORTS": gcloud.attempt_folder(settings, attempt),
        "ARCHIVE": f"{gcloud.launch_folder(settings)}/{archive.name}",
        "SHA256": archive.sha256,
        "PYTHON": archive.python,
        "INSTALLER": INSTALLER,
        "RESTARTS": str(settings.limits.restarts),
        "SECONDS_AT_MOST": str(max(1, round(settings.limits.hours * 3600))),
        "BEAT": str(beat),
        "LINGER": str(linger),
        "PAUSE": str(pause),
    }
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            "# A worker of an extraction: installs the program, runs it, reports to the bucket.",
            LITERALLY,
            "set -euo pipefail",
            "",
            *(f"readonly {name}={shlex.quote(value)}" for name, value in words.items()),
            *(f"readonly {name}=({_array(values)})" for name, values in lists.items()),
            BODY,
        ]
    )


def _array(values: Sequence[str]) -> str:
    return shlex.join(values)


BODY = r"""
export PATH="$PATH:/snap/bin" HOME="${HOME:-/root}"

if [[ ${1-} != work ]]; then
  # A unit of its own: there is never a second one, and it is told when the machine goes away.
  if systemctl is-active --quiet "$UNIT"; then
    exit 0
  fi
  mkdir -p "$FOLDER"
  chmod 700 "$FOLDER"
  install -m 700 "$0" "$FOLDER/worker.sh"
  exec systemd-run --unit="$UNIT" --collect --property=KillMode=mixed \
    --property=TimeoutStopSec=90 --property=After=network-online.target \
    bash "$FOLDER/worker.sh" work
fi

cd "$FOLDER"
mkdir -p job tmp
export TMPDIR="$FOLDER/tmp" HF_HOME="$FOLDER/huggingface"
export UV_CACHE_DIR="$FOLDER/cache" UV_PYTHON_INSTALL_DIR="$FOLDER/python"
exec >>"$FOLDER/log" 2>&1

phase=installing
worker=unknown
job=
stopping=

say() {
  printf '%(%Y-%m-%d %H:%M:%S)T launch: %s\n' -1 "$*"
}

retry() {
  local tries
  for ((tries = 1; ; tries++)); do
    "$@" && return 0
    [[ $tries -lt 5 && -z $stopping ]] || return 1
    say "failed, trying again: $1" >&2
    sleep "$((PAUSE * tries))"
  done
}

report() {
  printf '%s %s %(%s)T %s\n' "$ATTEMPT" "$worker" -1 "$*" >status
  retry timeout 60 gcloud storage cp --quiet status "$REPORTS/worker-$worker.status" || true
  cp log log.now
  timeout 60 gcloud storage cp --quiet log.now "$REPORTS/worker-$worker.log" || true
}

end() {
  local code=$?
  trap - EXIT
  set +e
  if [[ -n $stopping ]]; then
    say "stopped in the phase $phase: the machine goes away"
    report stopped
    exit "$code"
  fi
  say "ended with $code in the phase $phase"
  report exited "$code" "$phase"
  if [[ $worker == 0 ]]; then
    sleep "$LINGER"
    say "nothing is left to do for this slice"
    timeout 120 "${TAKE_AWAY[@]}" || say "it could not be taken away from here"
    report exited "$code" "$phase"
  fi
  exit "$code"
}

stop() {
  stopping=yes
  if [[ -n $job ]]; then
    kill -TERM "$job" 2>/dev/null || true
  fi
}

trap end EXIT
trap stop TERM

unpack() {
  gcloud storage cp --quiet "$ARCHIVE" source.tar.gz || return 1
  printf '%s  source.tar.gz\n' "$SHA256" | sha256sum --check --quiet || return 1
  rm -rf source && mkdir source && tar --extract --gzip --file=source.tar.gz --directory=source
}

install_program() {
  python3 -m pip install --quiet --upgrade --target="$FOLDER/tools" "$INSTALLER" || return 1
  local uv="$FOLDER/tools/bin/uv"
  "$uv" venv --quiet --allow-existing --python="$PYTHON" venv || return 1
  "$uv" pip install --quiet --python=venv/bin/python \
    --requirement=source/requirements.txt --constraint=source/constraints.txt
}

run_job() {
  local token=
  if [[ ${#READ_SECRET[@]} -gt 0 ]]; then
    token=$(retry timeout 60 "${READ_SECRET[@]}" 2>secret.log) || { cat secret.log; return 1; }
  fi
  rm -f /tmp/libtpu_lockfile
  (
    cd job || exit 1
    if [[ -n $token ]]; then
      export HF_TOKEN="$token"
    fi
    export PYTHONPATH="$FOLDER/source" PYTHONUNBUFFERED=1
    exec timeout --foreground --kill-after=120 "$SECONDS_AT_MOST" "${JOB[@]}"
  ) &
  job=$!
  local beats=0
  while kill -0 "$job" 2>/dev/null; do
    sleep 1
    beats=$((beats + 1))
    if [[ $((beats % BEAT)) -eq 0 && -z $stopping ]]; then
      report running
    fi
  done
  local code=0
  wait "$job" || code=$?
  job=
  return "$code"
}

retry curl --silent --show-error --fail --header 'Metadata-Flavor: Google' --output worker \
  http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number
worker=$(<worker)
report installing
retry unpack
retry install_program

phase=running
report running
for ((restarts = 0; ; restarts++)); do
  code=0
  run_job || code=$?
  # 0: done; 2: bad input; 5: wrong rows; 124: out of time. All else may go better the next time:
  # one process that dies ends those of all workers, and each starts its own again.
  case $code in 0 | 2 | 5 | 124) exit "$code" ;; esac
  [[ -z $stopping && $restarts -lt $RESTARTS ]] || exit "$code"
  say "the command ended with $code; it goes on with --resume"
  sleep "$((2 * PAUSE))"
done
"""
